// Usage and cost: by model, key, version, hour and day.
import { html, useState } from "lib";
import { useLoad } from "parts/api";
import { Bars } from "parts/chart";
import { bytes, count, money, ms, share } from "parts/format";
import { link } from "parts/router";
import { Heading, Loaded } from "parts/ui";

const day = (back) => new Date(Date.now() - 86_400_000 * back).toISOString().slice(0, 10);
const SPANS = [["1", "24 hours"], ["7", "7 days"], ["30", "30 days"]];

// Every hour or day of a span, those without requests, too.
function filled(rows, by, days) {
  const size = by === "hour" ? 13 : 10, step = by === "hour" ? 3_600_000 : 86_400_000, known = Object.fromEntries(rows.map((row) => [row[by], row]));
  const points = [];
  for (let at = Date.now() - days * 86_400_000 + (by === "hour" ? step : 0); at <= Date.now(); at += step) {
    const name = new Date(at).toISOString().slice(0, size);
    points.push({ name, ...(known[name] || { requests: 0, errors: 0, cost_usd: 0 }) });
  }
  return points;
}

function Span({ days, set }) {
  return html`<label class="inline"><span class="small muted">Span</span><select value=${days} onChange=${(event) => set(event.target.value)}>${SPANS.map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select></label>`;
}

function Totals({ total }) {
  return html`<dl class="facts"><dt>Requests</dt><dd>${count(total.requests)}</dd><dt>Errors</dt><dd class=${total.errors ? "bad" : ""}>${count(total.errors)}${total.requests ? ` (${share(total.errors / total.requests)})` : ""}</dd><dt>Refused</dt><dd>${count(total.refused)}</dd>
    <dt>Cold starts</dt><dd>${count(total.cold_starts)}</dd><dt>p50, p99</dt><dd>${ms(total.latency_ms.p50)}, ${ms(total.latency_ms.p99)}</dd><dt>Payload</dt><dd>${bytes(total.bytes_in)} in, ${bytes(total.bytes_out)} out</dd><dt>Cost</dt><dd>${money(total.cost_usd)}${total.cost_usd_per_1000 ? `, ${money(total.cost_usd_per_1000)} per 1,000 requests` : ""}</dd></dl>`;
}

function Rows({ rows, name, title, href }) {
  if (!rows.length) return html`<p class="muted">No requests in this span.</p>`;
  return html`<div class="scroll" tabindex="0"><table><thead><tr><th>${title}</th><th class="num">Requests</th><th class="num">Errors</th><th class="num">Cold starts</th><th class="num">p50</th><th class="num">p99</th><th class="num">Cost</th></tr></thead><tbody>
    ${rows.map((row) => html`<tr><td>${href && row[name] ? html`<a href=${href(row)}>${row[name]}</a>` : row[name] === "" || row[name] == null ? "–" : row[name]}</td><td class="num">${count(row.requests)}</td><td class="num ${row.errors ? "bad" : ""}">${count(row.errors)}</td><td class="num">${count(row.cold_starts)}</td><td class="num">${ms(row.latency_ms.p50)}</td><td class="num">${ms(row.latency_ms.p99)}</td><td class="num">${money(row.cost_usd)}</td></tr>`)}</tbody></table></div>`;
}

export function ModelUsage({ model }) {
  const [days, setDays] = useState("1"), by = days === "1" ? "hour" : "day";
  const path = (name) => `/models/${encodeURIComponent(model.name)}/usage?${new URLSearchParams({ from: day(Number(days)), to: day(0), by: name })}`;
  const series = useLoad(path(by), { every: 30 }), versions = useLoad(path("version")), aliases = useLoad(path("alias"));
  return html`<div class="actions"><${Span} days=${days} set=${setDays} /></div>
    <${Loaded} load=${series} height=${200}>${(data) => { const points = filled(data.rows, by, Number(days)); return html`<div class="columns">
      <section class="card"><h3>Requests</h3><${Bars} title="Requests" format=${count} points=${points.map((row) => ({ label: row.name, value: row.requests, bad: row.errors }))} /></section>
      <section class="card"><h3>Cost</h3><${Bars} title="Cost" format=${money} points=${points.map((row) => ({ label: row.name, value: row.cost_usd }))} /></section>
      <section class="card"><h3>In all</h3><${Totals} total=${data.total} /></section></div>
      <p class="small muted">Counted every ${Math.round(data.delay_seconds)} seconds while requests come; the last ones with the next request. Times are UTC.</p>`; }}<//>
    <h3>By version</h3><${Loaded} load=${versions} height=${100}>${(data) => html`<${Rows} rows=${data.rows} name="version" title="Version" href=${(row) => link(["models", model.name, "versions", String(row.version)])} />`}<//>
    <h3>By alias</h3><${Loaded} load=${aliases} height=${100}>${(data) => html`<${Rows} rows=${data.rows} name="alias" title="Alias" />`}<//>`;
}

export function Usage() {
  const [days, setDays] = useState("30");
  const path = (by) => `/usage?${new URLSearchParams({ from: day(Number(days)), to: day(0), by })}`;
  const series = useLoad(path("day"), { every: 60 }), models = useLoad(path("model")), keys = useLoad(path("key"));
  return html`<header class="page"><div><${Heading} title="Usage and cost" /></div><div class="actions"><${Span} days=${days} set=${setDays} /></div></header>
    <${Loaded} load=${series} height=${220}>${(data) => html`<div class="columns">
      <section class="card"><h3>Cost by day</h3><${Bars} title="Cost" format=${money} points=${filled(data.rows, "day", Number(days)).map((row) => ({ label: row.name, value: row.cost_usd }))} /></section>
      <section class="card"><h3>In all</h3><${Totals} total=${data.total} /><p class="small muted">Besides, a month without any request costs ${money(data.prices.idle_month_usd)}. List prices of ${data.prices.region}, ${data.prices.architecture}, ${count(data.prices.memory_mb)} MB.</p></section></div>`}<//>
    <h2>By model</h2><${Loaded} load=${models} height=${120}>${(data) => html`<${Rows} rows=${data.rows} name="model" title="Model" href=${(row) => link(["models", row.model, "usage"])} />`}<//>
    <h2>By key</h2><${Loaded} load=${keys} height=${120}>${(data) => html`<${Rows} rows=${data.rows} name="key" title="Key" />`}<//>`;
}

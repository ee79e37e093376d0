// Usage and cost: by model, key, version, hour and day.
import { html, useState } from "lib";
import { useLoad } from "parts/api";
import { Series } from "parts/chart";
import { bytes, count, moment, money, ms, share } from "parts/format";
import { link } from "parts/router";
import { Heading, Loaded, Numbers } from "parts/ui";

const day = (back) => new Date(Date.now() - 86_400_000 * back).toISOString().slice(0, 10);
const SPANS = [["1", "24 hours"], ["7", "7 days"], ["30", "30 days"]];
const NONE = { requests: 0, errors: 0, refused: 0, cost_usd: 0, latency_ms: {} };

// Every hour or day of a span, those without requests, too.
export function filled(rows, by, days) {
  const size = by === "hour" ? 13 : 10, step = by === "hour" ? 3_600_000 : 86_400_000, known = Object.fromEntries(rows.map((row) => [row[by], row]));
  const points = [];
  for (let at = Date.now() - days * 86_400_000 + step; at <= Date.now() + 1; at += step) {
    const name = new Date(at).toISOString().slice(0, size);
    points.push({ label: moment(name), ...(known[name] || NONE) });
  }
  return points;
}

// The sums of the points that a chart shows. Their quantiles cannot be summed: the chart has them.
export function summed(points) {
  const total = { latency_ms: {} };
  for (const name of ["requests", "errors", "refused", "cold_starts", "cost_usd", "bytes_in", "bytes_out"]) total[name] = points.reduce((sum, row) => sum + (row[name] || 0), 0);
  return { ...total, cost_usd_per_1000: total.requests ? (1000 * total.cost_usd) / total.requests : null };
}

function Span({ days, set }) {
  return html`<label class="inline"><span class="small muted">Span</span><select value=${days} onChange=${(event) => set(event.target.value)}>${SPANS.map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select></label>`;
}

function Totals({ total }) {
  const rate = total.requests ? share(total.errors / total.requests) : "–";
  return html`<${Numbers} items=${[
    ["Requests", count(total.requests), total.refused ? `${count(total.refused)} refused` : ""],
    ["Errors", rate, total.errors ? count(total.errors) : "", total.errors ? "bad" : ""],
    total.latency_ms.p50 != null && ["p50", ms(total.latency_ms.p50)], total.latency_ms.p99 != null && ["p99", ms(total.latency_ms.p99)],
    ["Cold starts", count(total.cold_starts)],
    ["Cost", money(total.cost_usd), total.cost_usd_per_1000 ? `${money(total.cost_usd_per_1000)} per 1,000` : ""],
    ["Payload", bytes(total.bytes_in), `in, ${bytes(total.bytes_out)} out`],
  ]} />`;
}

// Totals and charts of points; `total` is left out for hours, which begin within a day.
function Charts({ points, total = summed(points) }) {
  return html`<${Totals} total=${total} /><div class="columns two">
  <${Series} title="Requests" names=${["requests", "errors"]} format=${count} summary=${`${count(total.requests)} in all`} points=${points.map((row) => ({ label: row.label, values: [row.requests, row.errors] }))} />
  <${Series} title="Latency" lines names=${["p50", "p99"]} format=${ms} points=${points.map((row) => ({ label: row.label, values: [row.latency_ms.p50, row.latency_ms.p99] }))} />
  <${Series} title="Errors and refusals" names=${["both", "errors alone"]} format=${count} summary=${`${count(total.errors)} errors, ${count(total.refused)} refused`} points=${points.map((row) => ({ label: row.label, values: [row.errors + row.refused, row.errors] }))} />
  <${Series} title="Cost" names=${["cost"]} format=${money} summary=${`${money(total.cost_usd)} in all`} points=${points.map((row) => ({ label: row.label, values: [row.cost_usd] }))} /></div>`;
}

function Rows({ rows, name, title, href }) {
  if (!rows.length) return html`<p class="muted">No requests in this span.</p>`;
  return html`<div class="scroll" tabindex="0"><table><thead><tr><th>${title}</th><th class="num">Requests</th><th class="num">Errors</th><th class="num">Refused</th><th class="num">Cold starts</th><th class="num">p50</th><th class="num">p99</th><th class="num">Cost</th></tr></thead><tbody>
    ${rows.map((row) => html`<tr><td>${href && row[name] ? html`<a href=${href(row)}>${row[name]}</a>` : row[name] === "" || row[name] == null ? html`<span class="muted">none</span>` : row[name]}</td><td class="num">${count(row.requests)}</td><td class="num ${row.errors ? "bad" : ""}">${count(row.errors)}</td><td class="num">${count(row.refused)}</td><td class="num">${count(row.cold_starts)}</td><td class="num">${ms(row.latency_ms.p50)}</td><td class="num">${ms(row.latency_ms.p99)}</td><td class="num">${money(row.cost_usd)}</td></tr>`)}</tbody></table></div>`;
}

export function ModelUsage({ model }) {
  const [days, setDays] = useState("1"), [version, setVersion] = useState(""), by = days === "1" ? "hour" : "day";
  const path = (name, only) => `/models/${encodeURIComponent(model.name)}/usage?${new URLSearchParams({ from: day(by === "hour" ? 1 : days - 1), to: day(0), by: name, ...(only && { version: only }) })}`;
  const series = useLoad(path(by, version), { every: 30 }), versions = useLoad(path("version")), aliases = useLoad(path("alias"));
  const numbers = ((versions.data && versions.data.rows) || []).map((row) => row.version);
  return html`<div class="actions"><${Span} days=${days} set=${setDays} />
      <label class="inline"><span class="small muted">Version</span><select value=${version} onChange=${(event) => setVersion(event.target.value)}><option value="">all</option>${numbers.map((number) => html`<option value=${number}>${number}</option>`)}</select></label></div>
    <${Loaded} load=${series} height=${420}>${(data) => html`<${Charts} points=${filled(data.rows, by, Number(days))} total=${by === "day" ? data.total : undefined} />
      <p class="small muted">Environments write every ${count(data.delay_seconds)} ${data.delay_seconds === 1 ? "second" : "seconds"} while requests come; what came last follows with the next request.${by === "day" ? " Days are those of UTC." : ""}</p>`}<//>
    ${by === "hour" && html`<p class="small muted">The tables below are of yesterday and today, days of UTC.</p>`}
    <h3 class="section">By version</h3><${Loaded} load=${versions} height=${100}>${(data) => html`<${Rows} rows=${data.rows} name="version" title="Version" href=${(row) => link(["models", model.name, "versions", String(row.version)])} />`}<//>
    <h3 class="section">By alias</h3><${Loaded} load=${aliases} height=${100}>${(data) => html`<${Rows} rows=${data.rows} name="alias" title="Alias" />`}<//>`;
}

export function Usage() {
  const [days, setDays] = useState("30");
  const path = (by) => `/usage?${new URLSearchParams({ from: day(Number(days) - 1), to: day(0), by })}`;
  const series = useLoad(path("day"), { every: 60 }), models = useLoad(path("model")), keys = useLoad(path("key"));
  return html`<header class="page"><div><${Heading} title="Usage and cost" /></div><div class="actions"><${Span} days=${days} set=${setDays} /></div></header>
    <${Loaded} load=${series} height=${420}>${(data) => html`<${Charts} points=${filled(data.rows, "day", Number(days))} total=${data.total} />
      <p class="small muted">Besides, a month without any request costs ${money(data.prices.idle_month_usd)}. List prices of ${data.prices.region}, ${data.prices.architecture}, ${count(data.prices.memory_mb)} MB. Days are those of UTC.</p>`}<//>
    <h2 class="hidden">Groups</h2><h3 class="section">By model</h3><${Loaded} load=${models} height=${120}>${(data) => html`<${Rows} rows=${data.rows} name="model" title="Model" href=${(row) => link(["models", row.model, "usage"])} />`}<//>
    <h3 class="section">By key</h3><${Loaded} load=${keys} height=${120}>${(data) => html`<${Rows} rows=${data.rows} name="key" title="Key" />`}<//>`;
}

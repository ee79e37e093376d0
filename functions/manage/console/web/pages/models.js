// Models: one row each, searched and filtered.
import { html, useEffect, useRef, useState } from "lib";
import { get, useLoad, usePages } from "parts/api";
import { LatencySpark, Spark } from "parts/chart";
import { count, money, ms, share } from "parts/format";
import { go, link, parse } from "parts/router";
import { Badge, Empty, Heading, Loaded, More, Rows, State, Time } from "parts/ui";

const HEADS = [["Model"], ["prod"], ["Newest"], ["Last 24 hours", "wide-only"], ["Today", "num"], ["Errors", "num"], ["Cold starts", "num wide-only"], ["p50", "num"], ["Cost, month", "num"], ["Changed"]];
const DAY = 86_400_000, HOUR = 3_600_000;
const name = (at, size) => new Date(at).toISOString().slice(0, size);
const byModel = (load) => Object.fromEntries(((load.data && load.data.rows) || []).map((row) => [row.model, row]));

// False once another page is chosen, which may not be drawn yet.
const isList = () => parse(location.hash).parts.length < 2;

export function Models({ query }) {
  const search = query.get("search") || "", state = query.get("state") || "active";
  const [text, setText] = useState(search);
  useEffect(() => {
    const timer = setTimeout(() => text !== search && isList() && go(["models"], { search: text, state: query.get("state") }), 250);
    return () => clearTimeout(timer);
  }, [text]);
  const pages = usePages(`/models?${new URLSearchParams({ state, limit: 50, ...(search && { search }) })}`, "models");
  const today = byModel(useLoad(`/usage?by=model&from=${name(Date.now(), 10)}`, { every: 60 }));
  const month = byModel(useLoad(`/usage?by=model&from=${name(Date.now(), 7)}-01`));
  return html`<header class="page"><div><${Heading} title="Models" /></div>
      <div class="actions"><a class="button" href="#/uploads">Upload a model</a></div></header>
    <form class="actions" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label class="inline"><span class="small muted">Search</span><input type="search" style="width:220px" value=${text} onInput=${(event) => setText(event.target.value)} /></label>
      <label class="inline"><span class="small muted">Show</span><select value=${state} onChange=${(event) => go(["models"], { search, state: event.target.value })}>
        <option value="active">active</option><option value="archived">archived</option></select></label>
    </form>
    <${Loaded} load=${pages} height=${320}>${() => (pages.rows.length ? html`<${Rows} heads=${HEADS}>${pages.rows.map((model) => html`<${Row} model=${model} today=${today[model.name]} month=${month[model.name]} />`)}<//>
      <${More} next=${pages.next} />` : search || state !== "active" || pages.next ? html`<p class="muted">No ${state} model matches.</p><${More} next=${pages.next} />` : html`<${First} />`)}<//>`;
}

function Row({ model, today, month }) {
  const prod = model.aliases && model.aliases.prod, cell = useRef(), day = useDay(model.name, cell), newest = model.newest;
  return html`<tr>
    <td class="lead"><a href=${link(["models", model.name])}><b>${model.name}</b></a>${model.description && html`<span class="sub line" title=${model.description}>${model.description}</span>`}</td>
    <td>${prod ?? "–"}</td>
    <td class="tight-cell">${newest ? html`${newest.version}${newest.state !== "READY" ? html` <${State} state=${newest.state} />` : ""}` : "–"}${newest && newest.damaged && html` <${Badge} kind="bad">damaged<//>`}</td>
    <td class="wide-only"><div ref=${cell} style="width:96px;height:24px">${day && html`<${Spark} points=${day} />`}</div></td>
    <td class="num">${count(today ? today.requests : 0)}</td>
    <td class="num ${today && today.errors ? "bad" : ""}">${today && today.requests ? share(today.errors / today.requests) : "–"}</td>
    <td class="num wide-only">${count(today ? today.cold_starts : 0)}</td>
    <td class="num"><span class="with-spark">${day && html`<span class="wide-only"><${LatencySpark} points=${day} /></span>`}<span>${ms(today && today.latency_ms.p50)}</span></span></td>
    <td class="num">${money(month ? month.cost_usd : 0)}</td>
    <td><${Time} at=${model.changed_at} /></td></tr>`;
}

// The last day by hour, read only for rows that are in sight, one after another.
let queue = Promise.resolve();
const days = new Map();

async function readDay(model) {
  const now = Date.now(), reply = await get(`/models/${encodeURIComponent(model)}/usage?by=hour&from=${name(now - DAY, 10)}`);
  const hours = Object.fromEntries(reply.rows.map((row) => [row.hour, row]));
  const rows = Array.from({ length: 24 }, (_, at) => hours[name(now - (23 - at) * HOUR, 13)]);
  return rows.map((row) => ({ requests: row ? row.requests : 0, errors: row ? row.errors : 0, p50: row ? row.latency_ms.p50 : null }));
}

function useDay(model, cell) {
  const [points, setPoints] = useState(days.get(model));
  useEffect(() => {
    const sight = new IntersectionObserver(([entry]) => {
      if (!entry.isIntersecting) return;
      sight.disconnect();
      // A chart that cannot be read stays empty: the numbers beside it have the error.
      queue = queue.then(() => readDay(model)).then((read) => { days.set(model, read); setPoints(read); }, () => {});
    });
    sight.observe(cell.current);
    return () => sight.disconnect();
  }, [model]);
  return points;
}

const First = () => html`<${Empty} title="No model yet">
  <ol class="stack tight" style="padding-left:20px">
    <li>Export a model to ONNX, e.g. with <code>torch.onnx.export</code>, or take one you have.</li>
    <li><a href="#/uploads">Upload it here</a>, or copy it to <code>models/NAME/model.onnx</code> in the artifacts bucket.</li>
    <li>A few seconds later it is listed here, with a form to try it.</li>
  </ol><//>`;

// Versions of a model, newest first, with what makes one better than another.
import { html, useState } from "lib";
import { change, usePages } from "parts/api";
import { bytes, ms, number } from "parts/format";
import { go, link } from "parts/router";
import { Badge, Empty, Loaded, More, Rows, Sheet, State, Time, toast } from "parts/ui";

export function aliasesOf(model, version) {
  return Object.entries(model.aliases || {}).filter(([, target]) => target === version).map(([alias]) => alias);
}

export function Versions({ model, reload }) {
  const pages = usePages(`/models/${encodeURIComponent(model.name)}/versions?limit=25`, "versions");
  const [chosen, setChosen] = useState([]);
  const [promoting, setPromoting] = useState();
  const choose = (version) => setChosen(chosen.includes(version) ? chosen.filter((item) => item !== version) : [...chosen, version].slice(-2));
  const pair = [...chosen].sort((a, b) => a - b);
  const prod = pages.rows.find((row) => row.version === (model.aliases || {}).prod);
  const names = new Set(pages.rows.filter((row) => row.primary).map((row) => row.primary.metric)), metric = names.size === 1 ? [...names][0] : "";
  return html`<${Loaded} load=${pages} height=${240}>${() => (pages.rows.length === 0 ? html`<${Empty} title="No version yet"><p>Upload a file to <code>models/${model.name}/</code>.</p><//>` : html`
    <${Rows} heads=${[[html`<span class="hidden">Compare</span>`], ["Version"], ["State"], [metric ? metric.replace(/_/g, " ") : "Metrics"], ["Best baseline", "num wide-only"], ["One row", "num"], ["Size", "num"], ["Registered"], [""]]}>${pages.rows.map((row) => html`<tr>
      <td class="check"><input type="checkbox" aria-label="Compare version ${row.version}" checked=${chosen.includes(row.version)} onChange=${() => choose(row.version)} /></td>
      <td class="tight-cell lead"><a href=${link(["models", model.name, "versions", String(row.version)])}><b>${row.version}</b></a> ${aliasesOf(model, row.version).map((alias) => html`<${Badge} kind="on">${alias}<//> `)}</td>
      <td><${State} state=${row.state} />${row.damaged && html` <${Badge} kind="bad">damaged<//>`}${row.approval && html` <${Badge} kind=${row.approval.decision === "reject" ? "bad" : ""}>${row.approval.decision === "reject" ? "rejected by a person" : "approved"}<//>`}</td>
      ${row.reason ? html`<td colspan="3" class="sentence"><span class=${row.state === "REJECTED" ? "bad" : "muted"}>${row.reason.message}</span></td>` : html`<td><${Score} row=${row} prod=${prod} />${row.note && html`<span class="sub">${row.note}</span>`}</td><td class="num wide-only muted">${row.primary ? number(row.primary.baseline) : "–"}</td><td class="num">${ms(row.latency_ms)}</td>`}
      <td class="num">${row.size_bytes ? bytes(row.size_bytes) : "–"}</td><td><${Time} at=${row.finished_at || row.created_at} /></td>
      <td>${row.state === "READY" && (model.aliases || {}).prod !== row.version && html`<button onClick=${() => setPromoting(row.version)}>Promote</button>`}</td></tr>`)}<//>
    <div class="actions"><${More} next=${pages.next} />
      <button disabled=${pair.length < 2} onClick=${() => go(["models", model.name, "versions", String(pair[1])], { compare: pair[0] })}>${pair.length < 2 ? "Choose two versions to compare" : `Compare ${pair[0]} and ${pair[1]}`}</button></div>`)}<//>
    ${promoting && html`<${Promote} model=${model} version=${promoting} close=${() => { setPromoting(); reload(); pages.reload(); }} />`}`;
}

// The metric that decides, with its interval, and whether it is better than that of prod.
function Score({ row, prod }) {
  const { primary } = row;
  if (!primary) {
    const entries = Object.entries(row.metrics || {}).filter(([, value]) => typeof value === "number");
    return entries.length ? entries.slice(0, 2).map(([name, value]) => html`<span>${name.replace(/_/g, " ")} <b>${number(value)}</b>  </span>`) : html`<span class="muted">–</span>`;
  }
  const other = prod && prod !== row && prod.primary && prod.primary.metric === primary.metric ? primary.value - prod.primary.value : 0;
  const better = other > 0 === primary.higher_is_better;
  return html`<span class="tight-cell"><b>${number(primary.value)}</b>${primary.low != null && html` <span class="muted">±${number((primary.high - primary.low) / 2)}</span>`}${other !== 0 && html` <span class="small ${better ? "good" : "warn"}" title="${number(Math.abs(other))} ${better ? "better" : "worse"} than prod">${other > 0 ? "▲" : "▼"} ${number(Math.abs(other))}</span>`}</span>`;
}

export function Promote({ model, version, close }) {
  const prod = (model.aliases || {}).prod;
  const run = async () => {
    await change("PUT", `/models/${encodeURIComponent(model.name)}/aliases/prod`, { version });
    toast(`${model.name}: prod is version ${version}.`);
  };
  return html`<${Sheet} title="Promote ${version} to prod?" action="Promote" run=${run} close=${close}>
    <p>All unversioned calls of ${model.name} will be answered by version ${version} within 5 seconds.${prod ? ` Version ${prod} stays, and you can go back in one click.` : ""}</p><//>`;
}

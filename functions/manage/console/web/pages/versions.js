// Versions of a model, newest first, with what makes one better than another.
import { html, useState } from "lib";
import { change, usePages } from "parts/api";
import { bytes, number } from "parts/format";
import { go, link } from "parts/router";
import { Badge, Empty, Loaded, More, Sheet, State, Time, toast } from "parts/ui";

export function primary(version) {
  const names = Object.keys(version.metrics || {});
  return (version.evaluation && version.evaluation.primary) || names[0];
}

export function aliasesOf(model, version) {
  return Object.entries(model.aliases || {}).filter(([, target]) => target === version).map(([alias]) => alias);
}

export function Versions({ model, reload }) {
  const pages = usePages(`/models/${encodeURIComponent(model.name)}/versions?limit=25`, "versions");
  const [chosen, setChosen] = useState([]);
  const [promoting, setPromoting] = useState();
  const choose = (version) => setChosen(chosen.includes(version) ? chosen.filter((item) => item !== version) : [...chosen, version].slice(-2));
  const pair = [...chosen].sort((a, b) => a - b);
  return html`<${Loaded} load=${pages} height=${240}>${() => (pages.rows.length === 0 ? html`<${Empty} title="No version yet"><p>Upload a file to <code>models/${model.name}/</code>.</p><//>` : html`
    <div class="scroll" tabindex="0"><table><thead><tr><th><span class="muted">Compare</span></th><th>Version</th><th>State</th><th>Metrics</th><th class="num">Size</th><th>Registered</th><th></th></tr></thead>
    <tbody>${pages.rows.map((row) => html`<tr>
      <td><input type="checkbox" aria-label="Compare version ${row.version}" checked=${chosen.includes(row.version)} onChange=${() => choose(row.version)} /></td>
      <td><a href=${link(["models", model.name, "versions", String(row.version)])}><b>${row.version}</b></a> ${aliasesOf(model, row.version).map((alias) => html`<${Badge} kind="on">${alias}<//> `)}</td>
      <td><${State} state=${row.state} />${row.damaged && html` <${Badge} kind="bad">damaged<//>`}${row.approval && html` <${Badge} kind=${row.approval.decision === "reject" ? "bad" : ""}>${row.approval.decision === "reject" ? "rejected by a person" : "approved"}<//>`}</td>
      <td>${row.reason ? html`<span class=${row.state === "REJECTED" ? "bad" : "muted"}>${row.reason.message}</span>` : html`<${Metrics} metrics=${row.metrics} />`}</td>
      <td class="num">${row.size_bytes ? bytes(row.size_bytes) : "–"}</td><td><${Time} at=${row.finished_at || row.created_at} /></td>
      <td>${row.state === "READY" && (model.aliases || {}).prod !== row.version && html`<button onClick=${() => setPromoting(row.version)}>Promote</button>`}</td></tr>`)}</tbody></table></div>
    <div class="actions"><${More} next=${pages.next} />
      <button disabled=${pair.length < 2} onClick=${() => go(["models", model.name, "versions", String(pair[1])], { compare: pair[0] })}>${pair.length < 2 ? "Choose two versions to compare" : `Compare ${pair[0]} and ${pair[1]}`}</button></div>`)}<//>
    ${promoting && html`<${Promote} model=${model} version=${promoting} close=${() => { setPromoting(); reload(); pages.reload(); }} />`}`;
}

function Metrics({ metrics }) {
  const entries = Object.entries(metrics || {}).filter(([, value]) => typeof value === "number");
  if (!entries.length) return html`<span class="muted">–</span>`;
  return html`${entries.slice(0, 2).map(([name, value]) => html`${name} <b>${number(value)}</b>  `)}`;
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

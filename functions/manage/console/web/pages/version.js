// The card of one version, and what differs between two.
import { html, useState } from "lib";
import { change, useLoad } from "parts/api";
import { Range } from "parts/chart";
import { Figures } from "parts/figures";
import { bytes, count, measured, ms, number, shape, words } from "parts/format";
import { link } from "parts/router";
import { Badge, Guard, Loaded, Numbers, Sheet, State, Time, toast } from "parts/ui";
import { Promote } from "pages/versions";

const path = (model, number, rest = "") => `/models/${encodeURIComponent(model)}/versions/${number}${rest}`;

export function Version({ model, number: chosen, reload }) {
  const load = useLoad(path(model.name, chosen), { every: 30 });
  return html`<${Loaded} load=${load}>${(version) => html`<${Card} model=${model} version=${version} reload=${() => { load.reload(); reload(); }} />`}<//>`;
}

function Card({ model, version, reload }) {
  const [sheet, setSheet] = useState();
  const prod = (model.aliases || {}).prod, ready = version.state === "READY", close = () => { setSheet(); reload(); };
  const { primary, measured: times } = version;
  return html`<header class="page"><div class="actions"><h2>Version ${version.version}</h2><${State} state=${version.state} />${(version.aliases || []).map((alias) => html`<${Badge} kind="on">${alias}<//>`)}${version.damaged && html`<${Badge} kind="bad">damaged<//>`}</div>
    <div class="actions">
      ${ready && prod !== version.version && html`<button class="primary" onClick=${() => setSheet("promote")}>Promote</button>`}
      ${ready && html`<a class="button" href=${link(["models", model.name, "try"], { version: version.version })}>Try it</a>`}
      ${prod && prod !== version.version && html`<a class="button" href=${link(["models", model.name, "versions", String(version.version)], { compare: prod })}>Compare with prod</a>`}
      ${ready && html`<button onClick=${() => setSheet("approve")}>Approve</button><button onClick=${() => setSheet("reject")}>Reject</button>`}
      ${["READY", "REJECTED"].includes(version.state) && html`<button onClick=${() => setSheet("archive")}>Archive</button>`}
    </div></header>
    ${version.reason && html`<p class="notice ${version.state === "REJECTED" ? "bad" : "warn"}"><b>${version.reason.code}</b> ${version.reason.message}</p>`}
    ${version.damaged && html`<p class="notice bad">${version.damaged}</p>`}
    ${version.approval && html`<p class="notice">${version.approval.decision === "reject" ? "Rejected" : "Approved"} by ${version.approval.by}, <${Time} at=${version.approval.at} />. ${version.approval.note}</p>`}
    ${version.note && html`<p>${version.note}</p>`}
    ${version.size_bytes > 0 && html`<${Numbers} items=${[
      primary && [primary.metric.replace(/_/g, " "), number(primary.value), primary.low != null && `±${number((primary.high - primary.low) / 2)}`],
      ["One row", ms(version.latency_ms)], ["Load", ms(times.load_ms)], ["Size", bytes(version.size_bytes)], ["Memory", version.memory_mb ? `${count(version.memory_mb)} MB` : "–"],
    ]} />`}
    <div class="columns two">
      <${Guard} title="The metrics"><${Metrics} version=${version} /><//>
      <section class="card"><h3>Call</h3><${Guard} title="The signature"><${Signature} signature=${version.signature} /><//></section>
    </div>
    <${Guard} title="The report of the training"><${Figures} evaluation=${version.evaluation} metric=${primary && primary.metric} /><//>
    <h3 class="section">Where it comes from, and how it runs</h3>
    <div class="columns">
      <section class="card"><h3>Training and data</h3><${Facts} record=${{ ...version.training, ...version.data }} empty="The package does not say." /></section>
      ${Object.keys(version.hyperparameters).length > 0 && html`<section class="card"><h3>Hyperparameters</h3><${Facts} record=${version.hyperparameters} /></section>`}
      ${version.notes.length > 0 && html`<section class="card"><h3>Notes of the registration</h3><ul style="padding-left:20px">${version.notes.map((note) => html`<li>${note}</li>`)}</ul></section>`}
      <section class="card"><h3>Registration</h3><dl class="facts">
        <dt>task</dt><dd>${version.task || "–"}</dd><dt>registered</dt><dd><${Time} at=${version.finished_at} /></dd><dt>uploaded as</dt><dd class="mono">${version.source.key}</dd>
        ${version.files[0] && html`<dt>SHA-256</dt><dd class="mono">${version.files[0].sha256.slice(0, 16)}…</dd>`}
        ${Object.entries(times).filter(([name]) => !SHOWN.has(name)).map(([name, value]) => html`<dt>${words(name)}</dt><dd>${measured(name, value)}</dd>`)}</dl></section>
      <section class="card"><h3>How it is loaded</h3><${Facts} record=${{ ...version.plan, ...version.graph }} /></section>
    </div>
    ${sheet === "promote" && html`<${Promote} model=${model} version=${version.version} close=${close} />`}
    ${["approve", "reject", "archive"].includes(sheet) && html`<${Decide} model=${model} version=${version} verb=${sheet} close=${close} />`}`;
}

const SHOWN = new Set(["size_bytes", "peak_memory_mb", "load_ms", "latency_ms_batch_1"]);

function Metrics({ version }) {
  const metrics = Object.entries(version.metrics).filter(([, value]) => typeof value === "number"), { intervals = {}, lead, rows } = version.evaluation;
  const range = (name, value) => [
    { label: "this version", value, low: (intervals[name] || [])[0], high: (intervals[name] || [])[1] },
    ...Object.entries(version.baselines).filter(([, baseline]) => typeof (baseline || {})[name] === "number").map(([label, baseline]) => ({ label, value: baseline[name], other: true })),
  ];
  return html`<section class="card"><h3>Metrics${rows ? html` <span class="muted">on ${count(rows)} held-out rows</span>` : ""}</h3>
    ${metrics.length ? html`<div class="scroll" tabindex="0"><table class="plain"><thead><tr><th>Metric</th><th class="num">Value</th><th class="num">95 % interval</th><th>Beside baselines</th></tr></thead><tbody>
      ${metrics.slice(0, 8).map(([name, value]) => html`<tr><td>${name.replace(/_/g, " ")}</td><td class="num"><b>${number(value)}</b></td><td class="num muted">${intervals[name] ? `${number(intervals[name][0])} to ${number(intervals[name][1])}` : "–"}</td><td><${Range} rows=${range(name, value)} name=${name} /></td></tr>`)}</tbody></table></div>
      ${lead && html`<p class="small">${lead.by > 0 ? "Ahead of" : "Behind"} <b>${lead.over}</b> by ${number(Math.abs(lead.by))}${lead.interval ? `, between ${number(lead.interval[0])} and ${number(lead.interval[1])}` : ""}.${lead.interval && lead.interval[0] <= 0 ? " It may be no better." : ""}</p>`}` : html`<p class="muted">The package has none.</p>`}</section>`;
}

export function Signature({ signature }) {
  if (!signature) return html`<p class="muted">Unknown.</p>`;
  const rows = [...signature.inputs.map((spec) => ["in", spec]), ...signature.outputs.map((spec) => ["out", spec])];
  return html`<div class="scroll" tabindex="0"><table><thead><tr><th></th><th>Name</th><th>Type</th><th>Shape</th></tr></thead><tbody>
    ${rows.map(([kind, spec]) => html`<tr><td class="muted">${kind}</td><td class="mono">${spec.name}</td><td>${spec.datatype}</td><td class="mono">${shape(spec.shape)}</td></tr>`)}</tbody></table></div>`;
}

const Facts = (props) => html`<${Guard} title="This"><${Listed} ...${props} /><//>`;

function Listed({ record, empty = "–" }) {
  const entries = Object.entries(record || {}).filter(([, value]) => value != null && value !== "");
  if (!entries.length) return html`<p class="muted">${empty}</p>`;
  return html`<dl class="facts">${entries.map(([name, value]) => html`<dt>${words(name)}</dt><dd>${name === "created" ? html`<${Time} at=${value} />` : measured(name, value)}</dd>`)}</dl>`;
}

const WORDS = {
  approve: ["Approve", "It says that somebody looked: the mark stays with the version and in the audit log."],
  reject: ["Reject", "No alias can be pointed at it and no policy releases it. Aliases that point at it now stay."],
  archive: ["Archive", "It is refused from then on, and for good. Its files remain."],
};

function Decide({ model, version, verb, close }) {
  const [note, setNote] = useState("");
  const [title, words] = WORDS[verb];
  const run = async () => {
    await change("POST", path(model.name, version.version, `/${verb}`), note ? { note } : undefined);
    toast(`Version ${version.version}: ${verb === "archive" ? "archived" : verb === "reject" ? "rejected" : "approved"}.`);
  };
  return html`<${Sheet} title="${title} version ${version.version}?" action=${title} danger=${verb !== "approve"} run=${run} close=${close}>
    <p>${words}</p><label>Note<input maxlength="1000" value=${note} onInput=${(event) => setNote(event.target.value)} /></label><//>`;
}

export function Compare({ model, from, to }) {
  const load = useLoad(`/models/${encodeURIComponent(model.name)}/diff?from=${from}&to=${to}`);
  return html`<h2>Version ${from} and version ${to}</h2><${Loaded} load=${load}>${({ differences }) => html`<${Guard} title="The comparison"><${Differences} differences=${differences} from=${from} to=${to} /><//>`}<//>`;
}

function Differences({ differences, from, to }) {
  const { signature, metrics = {}, ...rest } = differences;
  if (!Object.keys(differences).length) return html`<p>They are equal in everything that is recorded.</p>`;
  const head = (title) => html`<thead><tr><th>${title}</th><th class="num">Version ${from}</th><th class="num">Version ${to}</th></tr></thead>`;
  const scores = Object.entries(metrics).filter(([, pair]) => typeof pair.from === "number" && typeof pair.to === "number");
  return html`${signature && html`<section class="notice ${signature.breaks_callers ? "bad" : ""}"><h3>${signature.breaks_callers ? "Callers of the old version break" : "Callers of the old version go on"}</h3>
      <ul style="padding-left:20px">${(signature.changes || ["one of them has no signature"]).map((change) => html`<li>${change}</li>`)}</ul></section>`}
    ${scores.length > 0 && html`<div class="scroll" tabindex="0"><table><thead><tr><th>Metric</th><th class="num">Version ${from}</th><th class="num">Version ${to}</th><th class="num">Change</th><th>Intervals</th></tr></thead><tbody>${scores.map(([name, pair]) => html`<tr><td>${name.replace(/_/g, " ")}</td><td class="num">${number(pair.from)}</td><td class="num"><b>${number(pair.to)}</b></td><td class="num">${pair.change > 0 ? "+" : ""}${number(pair.change)}</td>
      <td><${Range} name=${name} rows=${[[to, pair.to, pair.to_interval], [from, pair.from, pair.from_interval, true]].map(([label, value, interval, other]) => ({ label: `version ${label}`, value, other, low: (interval || [])[0], high: (interval || [])[1] }))} /></td></tr>`)}</tbody></table></div>`}
    ${Object.entries(rest).map(([part, pairs]) => html`<div class="scroll" tabindex="0"><table class="pairs">${head(part.replace(/_/g, " "))}<tbody>
      ${("from" in pairs && "to" in pairs ? [[part, pairs]] : Object.entries(pairs)).map(([name, pair]) => html`<tr><td>${name === part ? "" : words(name)}</td><${Side} name=${name} value=${pair.from} /><${Side} name=${name} value=${pair.to} /></tr>`)}</tbody></table></div>`)}`;
}

const Side = ({ name, value }) => (Array.isArray(value) && value.some((item) => typeof item === "string" && item.length > 20)
  ? html`<td><ul style="padding-left:16px">${value.map((item) => html`<li>${item}</li>`)}</ul></td>`
  : html`<td class=${typeof value === "string" && value.length > 30 ? "" : "num"}>${measured(name, value)}</td>`);

// Traffic of an alias: which versions answer, a canary with its live verdict, one button back.
import { html, useState } from "lib";
import { change, useLoad } from "parts/api";
import { count, ms, share } from "parts/format";
import { link } from "parts/router";
import { Badge, Loaded, Sheet, Time, toast } from "parts/ui";

const path = (model, alias, rest = "") => `/models/${encodeURIComponent(model)}/aliases/${encodeURIComponent(alias)}${rest}`;
export const MOVES = { finish: "registered", move_alias: "moved", rollback: "rolled back", set_traffic: "split", clear_traffic: "split ended", start_canary: "canary started", step_canary: "canary's next step", roll_back_canary: "canary rolled back", promote_canary: "canary promoted", stop_canary: "canary stopped" };
const minutes = (seconds) => (seconds == null ? "" : seconds < 90 ? `${seconds} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);

export function Traffic({ model, reload }) {
  const names = Object.keys(model.aliases || {}).filter((name) => name !== "latest");
  const [alias, setAlias] = useState(names.includes("prod") ? "prod" : names[0]);
  if (!alias) return html`<p class="notice">No alias yet: the first READY version becomes prod.</p>`;
  return html`<div class="actions"><label class="inline"><span class="small muted">Alias</span><select value=${alias} onChange=${(event) => setAlias(event.target.value)}>${names.map((name) => html`<option>${name}</option>`)}</select></label></div>
    <${AliasTraffic} key=${alias} model=${model} alias=${alias} reload=${reload} />`;
}

function AliasTraffic({ model, alias, reload }) {
  const traffic = useLoad(path(model.name, alias, "/traffic"), { every: 5 });
  const canary = useLoad(path(model.name, alias, "/canary"), { every: 3 });
  const versions = useLoad(`/models/${encodeURIComponent(model.name)}/versions?state=READY&limit=50`);
  const history = useLoad(path(model.name, alias, "/history?limit=20"), { every: 15 });
  const [sheet, setSheet] = useState();
  const close = () => { setSheet(); [traffic, canary, history].forEach((load) => load.reload()); reload(); };
  const running = canary.data && canary.data.state === "running";
  return html`<${Loaded} load=${traffic} height=${160}>${(now) => {
    const others = ((versions.data && versions.data.versions) || []).map((row) => row.version).filter((number) => number !== now.version);
    const weights = now.weights && now.weights.length ? now.weights : [{ version: now.version, weight: 100 }];
    return html`<section class="card"><h3>${alias} now</h3>
      <div class="split" role="img" aria-label=${weights.map((weight) => `${weight.weight} % version ${weight.version}`).join(", ")}>${weights.filter((weight) => weight.weight > 0).map((weight) => html`<span style=${`width:${weight.weight}%`} title=${`version ${weight.version}: ${weight.weight} %`}>${weight.version}${weight.weight >= 12 ? ` · ${weight.weight} %` : ""}</span>`)}</div>
      <p class="muted">${weights.map((weight) => `version ${weight.version}: ${weight.weight} %`).join(" · ")}${now.shadow ? ` · shadow: version ${now.shadow.version}, copies of ${now.shadow.percent} %${now.agreement && now.agreement.compared ? `, ${count(now.agreement.differing)} of ${count(now.agreement.compared)} answers differ` : ""}` : ""} · revision ${now.revision}</p>
      <div class="actions">
        ${!running && others.length > 0 && html`<button class="primary" onClick=${() => setSheet("canary")}>Start a canary</button><button onClick=${() => setSheet("promote")}>Promote</button><button onClick=${() => setSheet("split")}>Split or shadow</button>`}
        ${(weights.length > 1 || now.shadow) && !running && html`<button onClick=${() => setSheet("end")}>All to ${now.version}</button>`}
        ${!running && (weights.length > 1 || (history.data && history.data.history.some((move) => move.from_version))) && html`<button class="danger" onClick=${() => setSheet("rollback")}>Roll back</button>`}
        ${!running && others.length === 0 && html`<span class="muted">Upload a second version to move traffic to it.</span>`}</div></section>
      ${canary.data && html`<${Canary} canary=${canary.data} ask=${setSheet} />`}
      <section class="stack tight"><h3>History of ${alias}</h3><${Loaded} load=${history} height=${80}>${({ history: moves }) => (moves.length ? html`<div class="scroll" tabindex="0"><table><tbody>${moves.map((move) => html`<tr><td><${Time} at=${move.at} /></td><td>${MOVES[move.action] || move.action.replace(/_/g, " ")}</td><td>${move.from_version ?? "–"} → ${move.to_version ?? "–"}</td><td class="muted">${move.actor}</td></tr>`)}</tbody></table></div>` : html`<p class="muted">It has not moved.</p>`)}<//></section>
      <${Sheets} sheet=${sheet} model=${model.name} alias=${alias} now=${now} others=${others} canary=${canary.data} close=${close} />`;
  }}<//>`;
}

function Canary({ canary, ask }) {
  const running = canary.state === "running", arms = [canary.stable, canary.candidate].filter(Boolean);
  const words = { running: "running", promoted: "promoted", rolled_back: "rolled back", stopped: "stopped" }[canary.state];
  return html`<section class="card" aria-live="polite"><div class="actions"><h3>Canary of version ${canary.version}</h3><${Badge} kind=${running ? "on" : canary.state === "rolled_back" ? "bad" : ""}>${words}<//></div>
    <p>${canary.verdict}</p>
    ${canary.steps && html`<ol class="steps">${canary.steps.map((step, at) => html`<li class=${at + 1 < canary.step || canary.state === "promoted" ? "done" : at + 1 === canary.step ? (running ? "now" : "failed") : ""}>${step} %</li>`)}<li class=${canary.state === "promoted" ? "done" : ""}>100 %</li></ol>`}
    ${running && html`<p class="small muted">This step lasts at least ${minutes(canary.step_seconds_left)} more; after ${minutes(canary.seconds_left)} without a promotion it rolls back.</p>`}
    ${!running && canary.ended_at && html`<p class="small muted">Ended <${Time} at=${canary.ended_at} />. <a href=${link(["audit"], { model: canary.model })}>Audit</a></p>`}
    ${arms.length > 0 && html`<div class="scroll" tabindex="0"><table><thead><tr><th>Version</th><th class="num">Requests</th><th class="num">Errors</th><th class="num">95 % of them within</th></tr></thead><tbody>${arms.map((arm) => html`<tr><td>${arm.version} ${arm.version === canary.version ? html`<${Badge} kind="on">canary<//>` : ""}</td><td class="num">${count(arm.requests)}</td>
      <td class="num">${share(arm.error_rate.value)} <span class="muted small">${share(arm.error_rate.low)} to ${share(arm.error_rate.high)}</span></td><td class="num">${arm.p95_ms ? html`${ms(arm.p95_ms.value)} <span class="muted small">${ms(arm.p95_ms.low)} to ${ms(arm.p95_ms.high)}</span>` : "–"}</td></tr>`)}</tbody></table></div>`}
    ${canary.compared > 0 && html`<p class="small">Of ${count(canary.compared)} requests that both answered, ${share(canary.disagreement.value)} differ.</p>`}
    ${running && html`<div class="actions"><button class="danger" onClick=${() => ask("stop")}>Stop and go back</button><button onClick=${() => ask("finish")}>Promote now</button></div>`}</section>`;
}

function Sheets({ sheet, model, alias, now, others, canary, close }) {
  const at = (rest) => path(model, alias, rest), expected = { expected_revision: now.revision };
  if (sheet === "stop") return html`<${Sheet} title="Stop the canary?" action="Stop and go back" danger close=${close} run=${async () => { await change("DELETE", at("/canary")); toast(`${alias} is all version ${now.version} again.`); }}><p>All calls of ${model} are answered by version ${now.version} within 5 seconds. Version ${canary.version} stays, without traffic.</p><//>`;
  if (sheet === "finish") return html`<${Sheet} title="Promote version ${canary.version} now?" action="Promote" close=${close} run=${async () => { await change("POST", at("/canary/promote")); toast(`${alias} is version ${canary.version}.`); }}><p>The canary ends before its judgement. All calls of ${model} are answered by version ${canary.version} within 5 seconds; you can go back.</p><//>`;
  if (sheet === "end") return html`<${Sheet} title="Send all to version ${now.version}?" action="Send all" close=${close} run=${async () => { await change("DELETE", at("/traffic")); toast("Done."); }}><p>The split and the shadow end within 5 seconds.</p><//>`;
  if (sheet === "rollback") return html`<${Sheet} title="Roll ${alias} back?" action="Roll back" danger close=${close} run=${async () => { const after = await change("POST", at("/rollback"), expected); toast(`${alias} is version ${after.version}.`); }}><p>${now.weights && now.weights.length > 1 ? `The split ends: all calls go to version ${now.version}.` : "All calls go to the version before the last move, within 5 seconds. A second rollback undoes this."}</p><//>`;
  if (sheet === "canary") return html`<${StartCanary} ...${{ model, alias, now, others, close }} />`;
  if (sheet === "promote") return html`<${PromoteOne} ...${{ model, alias, now, others, close }} />`;
  if (sheet === "split") return html`<${Split} ...${{ model, alias, now, others, close }} />`;
  return null;
}

const Choice = ({ others, value, set, title = "Version" }) => html`<label>${title}<select value=${value} onChange=${(event) => set(Number(event.target.value))}>${others.map((number) => html`<option value=${number}>${number}</option>`)}</select></label>`;

function PromoteOne({ model, alias, now, others, close }) {
  const [version, setVersion] = useState(others[0]);
  const run = async () => { await change("PUT", path(model, alias), { version, expected_revision: now.revision }); toast(`${alias} is version ${version}.`); };
  return html`<${Sheet} title="Promote to ${alias}" action="Promote ${version}" run=${run} close=${close}><${Choice} others=${others} value=${version} set=${setVersion} />
    <p>All ${alias === "prod" ? "unversioned calls" : `calls of ${alias}`} of ${model} will be answered by version ${version} within 5 seconds. Version ${now.version} stays and you can go back.</p><//>`;
}

function StartCanary({ model, alias, now, others, close }) {
  const [version, setVersion] = useState(others[0]);
  const [steps, setSteps] = useState("10, 50"), [bake, setBake] = useState(10), [samples, setSamples] = useState(500);
  const list = steps.split(/[\s,]+/).filter(Boolean).map(Number);
  const run = async () => {
    await change("POST", path(model, alias, "/canary"), { version, steps: list, bake_seconds: Math.max(1, Math.round(60 * bake)), min_samples: Number(samples), expected_revision: now.revision });
    toast("The canary has started.");
  };
  return html`<${Sheet} title="Start a canary" action="Start" run=${run} close=${close}><${Choice} others=${others} value=${version} set=${setVersion} />
    <label>Steps in %<input value=${steps} onInput=${(event) => setSteps(event.target.value)} /></label>
    <label>Minutes a step<input type="number" min="0" step="any" value=${bake} onInput=${(event) => setBake(Number(event.target.value))} /></label>
    <label>Requests that each version answers in a step, at least<input type="number" min="1" value=${samples} onInput=${(event) => setSamples(event.target.value)} /></label>
    <p>Version ${version} gets ${list.join(" %, then ")} % of the requests, and all of them in the end, if it errs no more often and is not slower than version ${now.version}. Otherwise everything goes back by itself, and the audit log says why.</p><//>`;
}

function Split({ model, alias, now, others, close }) {
  const [version, setVersion] = useState(others[0]), [percent, setPercent] = useState(10), [kind, setKind] = useState("split");
  const body = kind === "split"
    ? { weights: [{ version: now.version, weight: 100 - Number(percent) }, { version, weight: Number(percent) }], shadow: now.shadow }
    : { weights: now.weights && now.weights.length ? now.weights : [{ version: now.version, weight: 100 }], shadow: { version, percent: Number(percent) } };
  const run = async () => { await change("PUT", path(model, alias, "/traffic"), { ...body, expected_revision: now.revision }); toast("Done."); };
  return html`<${Sheet} title="Split or shadow" action="Apply" run=${run} close=${close}>
    <label>What<select value=${kind} onChange=${(event) => setKind(event.target.value)}><option value="split">answer a share of the calls</option><option value="shadow">copies of a share, whose answers are compared</option></select></label>
    <${Choice} others=${others} value=${version} set=${setVersion} /><label>Per cent<input type="number" min="0.01" max="100" step="0.01" value=${percent} onInput=${(event) => setPercent(event.target.value)} /></label>
    <p>${kind === "split" ? `Version ${version} answers ${percent} % of the calls within 5 seconds, version ${now.version} the rest, until you change it.` : `Version ${version} also runs ${percent} % of the calls, after their replies. Callers notice nothing; how often both agree is counted.`}</p><//>`;
}

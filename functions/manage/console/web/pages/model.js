// One model: what answers now, its versions, a form to try it, its traffic, usage and history.
import { html, useState } from "lib";
import { change, useLoad } from "parts/api";
import { count, money, ms } from "parts/format";
import { link } from "parts/router";
import { Badge, Heading, Loaded, Sheet, Tabs, Time, toast } from "parts/ui";
import { History } from "pages/audit";
import { Traffic } from "pages/traffic";
import { TryIt } from "pages/tryit";
import { ModelUsage } from "pages/usage";
import { Compare, Version } from "pages/version";
import { Versions } from "pages/versions";

const TABS = [["versions", "Versions"], ["try", "Try it"], ["traffic", "Traffic"], ["usage", "Usage"], ["history", "History"]];

export function Model({ parts, query }) {
  const [, name, tab = "versions", number] = parts;
  const model = useLoad(`/models/${encodeURIComponent(name)}`, { every: 15 });
  return html`<${Loaded} load=${model}>${(data) => html`
    <${Head} model=${data} tab=${tab} reload=${model.reload} />
    <${Tabs} current=${tab} items=${TABS.map(([key, title]) => [key, link(["models", name, key]), title])} />
    <${Tab} tab=${tab} model=${data} number=${number} query=${query} reload=${model.reload} />`}<//>`;
}

function Tab({ tab, model, number, query, reload }) {
  if (tab === "try") return html`<${TryIt} model=${model} query=${query} />`;
  if (tab === "traffic") return html`<${Traffic} model=${model} reload=${reload} />`;
  if (tab === "usage") return html`<${ModelUsage} model=${model} />`;
  if (tab === "history") return html`<${History} model=${model.name} />`;
  if (number && query.get("compare")) return html`<${Compare} model=${model} from=${query.get("compare")} to=${number} />`;
  if (number) return html`<${Version} model=${model} number=${number} reload=${reload} />`;
  return html`<${Versions} model=${model} reload=${reload} />`;
}

const today = () => new Date().toISOString().slice(0, 10);

function Head({ model, tab, reload }) {
  const [sheet, setSheet] = useState();
  const usage = useLoad(`/models/${encodeURIComponent(model.name)}/usage?from=${today()}`, { every: 30 });
  const aliases = Object.entries(model.aliases || {}), answering = (model.aliases || {}).prod;
  const card = useLoad(!model.description && answering && `/models/${encodeURIComponent(model.name)}/versions/${answering}`); // the package's own words
  return html`<header class="page"><div>
      <p class="small"><a href="#/models">Models</a></p>
      <${Heading} title=${model.name} />
      <p>${model.description || (card.data && card.data.description) || html`<span class="muted">No description.</span>`} <button class="link" onClick=${() => setSheet("edit")}>Edit</button></p>
      <p class="muted">${aliases.length ? aliases.map(([alias, version], at) => html`${at ? " · " : ""}${alias} → <a href=${link(["models", model.name, "versions", String(version)])}>${version}</a>`) : "no version answers yet"}
        ${" · "}${count(model.versions)} ${model.versions === 1 ? "version" : "versions"} · changed <${Time} at=${model.changed_at} />
        ${usage.data && html`<${Today} total=${usage.data.total} />`}
        ${model.state === "archived" && html` <${Badge} kind="warn">archived<//>`}${model.serving === false && html` <${Badge} kind="warn">unloaded<//>`}</p>
    </div>
    <div class="actions">
      ${tab !== "try" && html`<a class="button" href=${link(["models", model.name, "try"])}>Try it</a>`}
      <button onClick=${() => setSheet("archive")}>${model.state === "archived" ? "Restore" : "Archive"}</button></div></header>
    ${sheet === "edit" && html`<${Edit} model=${model} close=${() => { setSheet(); reload(); }} />`}
    ${sheet === "archive" && html`<${Archive} model=${model} close=${() => { setSheet(); reload(); }} />`}`;
}

// Today in one line: what whoever is on call has to see.
const Today = ({ total }) => html` · ${count(total.requests)} ${total.requests === 1 ? "request" : "requests"} today${total.errors > 0 && html`, <span class="bad">${count(total.errors)} failed</span>`}${total.latency_ms.p50 != null && `, p50 ${ms(total.latency_ms.p50)}`}${total.requests > 0 && `, ${money(total.cost_usd)}`}`;

function Edit({ model, close }) {
  const [description, setDescription] = useState(model.description);
  const [kind, setKind] = useState(model.policy.kind);
  const [gain, setGain] = useState(model.policy.min_gain || 0);
  const [canary, setCanary] = useState(Boolean(model.policy.canary));
  const policy = { kind };
  if (kind === "if_better") Object.assign(policy, { min_gain: Number(gain) }, model.policy.higher_is_better != null && { metric: model.policy.metric, higher_is_better: model.policy.higher_is_better });
  if (kind !== "manual" && canary) policy.canary = model.policy.canary || {};
  const run = async () => {
    await change("PATCH", `/models/${encodeURIComponent(model.name)}`, { description, policy, expected_revision: model.revision });
    toast("Saved.");
  };
  return html`<${Sheet} title="Describe ${model.name}" action="Save" run=${run} close=${close}>
    <label>Description<textarea maxlength="2000" value=${description} onInput=${(event) => setDescription(event.target.value)}></textarea></label>
    <label>When a new version is READY<select value=${kind} onChange=${(event) => setKind(event.target.value)}>
      <option value="manual">a person moves prod</option><option value="always">prod moves to it</option><option value="if_better">prod moves if its metric is better</option></select></label>
    ${kind === "if_better" && html`<label>Smallest gain of the metric<input type="number" min="0" step="any" value=${gain} onInput=${(event) => setGain(event.target.value)} /></label>`}
    ${kind !== "manual" && html`<label class="inline"><input type="checkbox" checked=${canary} onChange=${(event) => setCanary(event.target.checked)} />by a canary, step by step</label>`}
  <//>`;
}

function Archive({ model, close }) {
  const archived = model.state === "archived", verb = archived ? "restore" : "archive";
  const run = async () => {
    await change("POST", `/models/${encodeURIComponent(model.name)}/${verb}`);
    toast(archived ? `${model.name} is restored.` : `${model.name} is archived.`);
  };
  return html`<${Sheet} title="${archived ? "Restore" : "Archive"} ${model.name}?" action=${archived ? "Restore" : "Archive"} danger=${!archived} run=${run} close=${close}>
    <p>${archived ? "Its versions answer again within a few seconds." : "All calls of this model are refused within a few seconds, and it leaves the list. Nothing is deleted: you can restore it."}</p><//>`;
}

// Who did what, when, and what it was before.
import { html, useState } from "lib";
import { usePages } from "parts/api";
import { go, link } from "parts/router";
import { MOVES } from "pages/traffic";
import { Heading, Loaded, More, Rows, Time } from "parts/ui";

export function Audit({ query }) {
  const filters = Object.fromEntries(["model", "actor", "action"].map((name) => [name, query.get(name) || ""]));
  const submit = (event) => {
    event.preventDefault();
    go(["audit"], Object.fromEntries(new FormData(event.target)));
  };
  const chosen = Object.entries(filters).filter(([, value]) => value);
  return html`<header class="page"><div><${Heading} title="Audit" /></div></header>
    <form class="actions" onSubmit=${submit}>${Object.entries(filters).map(([name, value]) => html`<label class="inline"><span class="small muted">${name}</span><input name=${name} key=${`${name}${value}`} defaultValue=${value} style="width:150px" /></label>`)}<button>Filter</button>${chosen.length > 0 && html`<a href="#/audit">Show all</a>`}</form>
    <${Records} path=${`/audit?${new URLSearchParams({ limit: 50, ...Object.fromEntries(chosen) })}`} withModel />`;
}

export const History = ({ model }) => html`<${Records} path=${`/models/${encodeURIComponent(model)}/audit?limit=50`} />`;

function Records({ path, withModel }) {
  const pages = usePages(path, "records");
  return html`<${Loaded} load=${pages} height=${320}>${() => (pages.rows.length === 0 ? html`<p class="muted">No change matches${pages.next ? " so far" : ""}.</p><${More} next=${pages.next} />` : html`<${Rows} heads=${[["When"], ["Who"], ...(withModel ? [["Of"]] : []), ["What"], ["Before → after"]]}>
    ${pages.rows.map((record) => html`<tr><td><${Time} at=${record.at} /></td><td>${record.actor}</td>
      ${withModel && html`<td>${record.model ? html`<a href=${link(["models", record.model])}>${record.model}</a>` : record.key ? html`key <span class="mono">${record.key}</span>` : "–"}</td>`}
      <td class="tight-cell">${ACTIONS[record.action] || MOVES[record.action] || record.action.replace(/_/g, " ")}${record.version ? ` ${record.version}` : ""}${record.after.reason && typeof record.after.reason === "string" ? html`<span class="sub">${record.after.reason}</span>` : ""}</td><td class="wide-text"><${Change} before=${record.before} after=${record.after} /></td></tr>`)}<//><${More} next=${pages.next} />`)}<//>`;
}

const ACTIONS = { claim: "received", finish: "registered", resume: "tried again", wait: "waits", move_alias: "moved", set_traffic: "split", create: "key created", describe: "described" };

// A traffic object by alias, as people say it.
const split = (traffic) => Object.entries(traffic || {}).map(([alias, now]) => `${alias} ${now ? (now.weights || []).map((part) => `${part.weight} % ${part.version}`).join(" + ") + (now.shadow ? `, shadow ${now.shadow.version}` : "") : "whole"}`).join(", ");

const brief = (value, name) => {
  if (value == null) return "–";
  if (name === "traffic" && typeof value === "object") return split(value);
  if (Array.isArray(value)) return value.join(", ") || "–";
  const text = value.message || (value.key && value.bucket ? value.key : typeof value === "object" ? JSON.stringify(value).replace(/["{}]/g, "").replace(/,/g, ", ").replace(/:/g, " ").replace(/\bnull\b/g, "–") : String(value));
  return text.length > 90 ? `${text.slice(0, 88)}…` : text;
};

function Change({ before, after }) {
  const [open, setOpen] = useState(false);
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((name) => (name !== "reason" || typeof after.reason !== "string") && JSON.stringify(before[name]) !== JSON.stringify(after[name]));
  const shown = open ? names : names.slice(0, 3);
  const isCut = names.length > 3 || names.some((name) => [before[name], after[name]].some((value) => value != null && typeof value === "object" && JSON.stringify(value).length > 40)) || names.some((name) => String(brief(after[name], name)).endsWith("…"));
  return html`<div class="small">${shown.map((name) => html`<div><span class="muted">${name.replace(/_/g, " ")}</span> ${name in before ? html`${open ? JSON.stringify(before[name]) : brief(before[name], name)} → ` : ""}${open ? JSON.stringify(after[name]) : brief(after[name], name)}</div>`)}
    ${isCut && html`<button class="link small" aria-expanded=${open ? "true" : "false"} onClick=${() => setOpen(!open)}>${open ? "Less" : "Whole"}</button>`}</div>`;
}

// Access keys: made here and shown once, rotated, revoked.
import { html, useRef, useState } from "lib";
import { change, usePages } from "parts/api";
import { Badge, Copy, Empty, Heading, Loaded, More, Rows, Sheet, Time, toast } from "parts/ui";

const SCOPES = [["infer", "call models"], ["read", "see models, usage and history"], ["deploy", "upload, promote, archive"], ["admin", "everything, keys too"]];

export function Keys() {
  const pages = usePages("/keys?limit=50", "keys");
  const [sheet, setSheet] = useState();
  const [secret, setSecret] = useState();
  const close = () => { setSheet(); pages.reload(); };
  return html`<header class="page"><div><${Heading} title="Keys" /></div><div class="actions"><button class="primary" onClick=${() => setSheet({ kind: "create" })}>New key</button></div></header>
    ${secret && html`<section class="notice" role="status"><h3>The key of ${secret.name}</h3><p class="mono" style="overflow-wrap:anywhere">${secret.key}</p>
      <div class="actions"><${Copy} text=${secret.key} /><b>It is not shown again.</b><button class="link" onClick=${() => setSecret()}>Hide</button></div></section>`}
    <${Loaded} load=${pages} height=${200}>${() => (pages.rows.length === 0 ? html`<${Empty} title="No key yet"><p>A key says who calls, and what they may do.</p><//>` : html`<${Rows} heads=${[["Name"], ["Scopes"], ["Models"], ["Limits"], ["State"], ["Created"], ["Expires"], [""]]}>
      ${pages.rows.map((key) => html`<tr><td class="lead"><b>${key.name}</b><span class="sub mono">${key.id}</span></td><td>${key.scopes.join(", ")}</td><td>${key.models.join(", ")}</td><td>${limitsOf(key)}</td>
        <td><${Badge} kind=${key.state === "active" ? "" : "bad"}>${key.state}<//></td><td><${Time} at=${key.created_at} /></td><td>${key.expires_at ? html`<${Time} at=${key.expires_at} />` : "never"}</td>
        <td class="num">${key.state === "active" && html`<div class="actions end"><button onClick=${() => setSheet({ kind: "limits", key })}>Limits</button><button onClick=${() => setSheet({ kind: "rotate", key })}>Rotate</button><button class="danger" onClick=${() => setSheet({ kind: "revoke", key })}>Revoke</button></div>`}</td></tr>`)}<//><${More} next=${pages.next} />`)}<//>
    ${sheet && sheet.kind === "create" && html`<${Create} close=${close} made=${setSecret} />`}
    ${sheet && sheet.kind === "limits" && html`<${Limits} record=${sheet.key} close=${close} />`}
    ${sheet && sheet.kind === "rotate" && html`<${Rotate} record=${sheet.key} close=${close} made=${setSecret} />`}
    ${sheet && sheet.kind === "revoke" && html`<${Sheet} title="Revoke ${sheet.key.name}?" action="Revoke" danger close=${close} run=${async () => { await change("POST", `/keys/${sheet.key.id}/revoke`); toast(`${sheet.key.name} is revoked.`); }}>
      <p>Requests with this key are refused within a minute, and for good.</p><//>`}`;
}

function Create({ close, made }) {
  const fields = useRef();
  const run = async () => {
    const form = new FormData(fields.current.closest("form")), expires = form.get("expires");
    made(await change("POST", "/keys", {
      name: form.get("name"), scopes: form.getAll("scope"), models: form.get("models").split(/[\s,]+/).filter(Boolean),
      ...(expires && { expires_at: new Date(expires).toISOString() }), ...limitsIn(form),
    }));
  };
  return html`<${Sheet} title="New key" action="Create" run=${run} close=${close}>
    <div class="stack" ref=${fields}>
      <label>Name<input name="name" required maxlength="100" autofocus placeholder="Who or what calls with it" /></label>
      <fieldset class="stack tight"><legend><b>It may</b></legend>${SCOPES.map(([scope, words], at) => html`<label class="inline"><input type="checkbox" name="scope" value=${scope} defaultChecked=${at === 0} />${words} <span class="muted">(${scope})</span></label>`)}</fieldset>
      <label>Models<input name="models" required defaultValue="*" /><span class="hint">Names or patterns, e.g. fraud-*</span></label>
      <label>Expires<input name="expires" type="datetime-local" /><span class="hint">Empty for never.</span></label>
      <${LimitFields} record=${{}} />
    </div><//>`;
}

// The fields of the API, with what people call them.
const LIMITS = [["monthly_requests", "Requests a month", "requests a month", 0, 1e12], ["max_tokens", "Longest reply, in tokens", "tokens a reply", 1, 1e9]];

function limitsOf(record) {
  const texts = LIMITS.filter(([name]) => record[name] != null).map(([name, , words]) => `${record[name].toLocaleString("en")} ${words}`);
  return texts.join(", ") || html`<span class="muted">none</span>`;
}

function limitsIn(form) {
  return Object.fromEntries(LIMITS.map(([name]) => [name, form.get(name) === "" ? null : Number(form.get(name))]));
}

function LimitFields({ record }) {
  return LIMITS.map(([name, title, , min, max]) => html`<label>${title}<input name=${name} type="number" min=${min} max=${max} step="1" defaultValue=${record[name] ?? ""} /><span class="hint">Empty for any number.</span></label>`);
}

function Limits({ record, close }) {
  const fields = useRef();
  const run = async () => {
    const limits = limitsIn(new FormData(fields.current.closest("form")));
    const changed = Object.entries(limits).filter(([name, limit]) => limit !== record[name]);
    if (changed.length) await change("PATCH", `/keys/${record.id}`, Object.fromEntries(changed));
    toast(`The limits of ${record.name} are changed.`);
  };
  return html`<${Sheet} title="Limits of ${record.name}" action="Change" run=${run} close=${close}>
    <div class="stack" ref=${fields}><${LimitFields} record=${record} />
      <p class="muted">They hold within a minute (KeyCacheSeconds). What the key has used of this month counts.</p></div><//>`;
}

function Rotate({ record, close, made }) {
  const [hours, setHours] = useState(24);
  const run = async () => { made(await change("POST", `/keys/${record.id}/rotate`, { overlap_seconds: Math.round(3600 * hours) })); };
  return html`<${Sheet} title="Rotate ${record.name}?" action="Rotate" run=${run} close=${close}>
    <p>It gets a new text, which is shown once. The old one stays valid for a while.</p>
    <label>Hours of overlap<input type="number" min="0" max="720" step="any" value=${hours} onInput=${(event) => setHours(Number(event.target.value))} /></label><//>`;
}

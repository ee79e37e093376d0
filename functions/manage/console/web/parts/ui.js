// Pieces that pages are made of.
import { Component, html, useEffect, useRef, useState } from "lib";
import { ago, exact } from "parts/format";

export const Time = ({ at }) => (at ? html`<time datetime=${at} title=${exact(at)}>${ago(at)}</time>` : html`<span class="muted">–</span>`);

export const Badge = ({ kind = "", children }) => html`<span class="badge ${kind}">${children}</span>`;

const STATES = { READY: "", PENDING: "warn", REJECTED: "bad", ARCHIVED: "", failed: "bad", ignored: "warn" };
export const State = ({ state }) => html`<${Badge} kind=${STATES[state] ?? ""}>${state}<//>`;

export const Skeleton = ({ height = 240 }) => html`<div class="skeleton" style=${`height:${height}px`} role="status" aria-label="Loading"></div>`;

const PERMISSION = /scope (\w+)/;

export function Problem({ error, retry }) {
  if (error.status === 403) {
    const scope = PERMISSION.exec(error.message);
    return html`<div class="notice" role="alert"><h3>This key may not see this</h3>
      <p>${scope ? html`It needs the scope <b>${scope[1]}</b>. Ask whoever made the key, or sign in with another one.` : error.message}</p></div>`;
  }
  return html`<div class="notice bad" role="alert"><h3>${error.status === 404 ? "There is no such thing" : "This did not work"}</h3>
    <p>${error.message}</p>
    ${error.requestId && html`<p class="small muted">Request ${error.requestId}</p>`}
    ${retry && html`<p><button onClick=${retry}>Try again</button></p>`}</div>`;
}

// What a page shows of a load: skeleton, error, or its content, with a remark when it is old.
export function Loaded({ load, height, children }) {
  if (load.loading) return html`<${Skeleton} height=${height} />`;
  if (!load.data) return html`<${Problem} error=${load.error} retry=${load.reload} />`;
  return html`${load.stale && html`<p class="notice warn">These data are of ${load.at ? ago(load.at) : "before"}: ${load.error.message} <button class="link" onClick=${load.reload}>Try again</button></p>`}${children(load.data)}`;
}

// A part of a page that may fail, e.g. on what an old manifest says: the rest of the page stays.
export class Guard extends Component {
  componentDidCatch(error) { this.setState({ error }); }
  componentWillReceiveProps() { this.setState({ error: null }); }
  render({ title, children }, { error }) {
    return error ? html`<p class="notice warn">${title} cannot be shown: ${error.message}.</p>` : children;
  }
}

// A strip of the few numbers that matter: [title, value, remark, class].
export const Numbers = ({ items }) => html`<dl class="numbers">${items.filter(Boolean).map(([title, value, remark, kind]) => html`<div><dt>${title}</dt><dd class=${kind || ""}>${value}${remark && html` <span class="small muted">${remark}</span>`}</dd></div>`)}</dl>`;

// A table of things, one a row. Where the window is narrow, each row becomes a block: its cells get the heads as labels.
export function Rows({ heads, children }) {
  const body = useRef();
  useEffect(() => {
    for (const row of body.current.rows) {
      let at = 0;
      for (const cell of row.cells) { const [title] = heads[at] || [""]; cell.dataset.label = cell.colSpan > 1 || typeof title !== "string" ? "" : title; at += cell.colSpan; }
    }
  });
  return html`<div class="scroll rows" tabindex="0"><table><thead><tr>${heads.map(([title, kind]) => html`<th class=${kind || ""}>${title}</th>`)}</tr></thead><tbody ref=${body}>${children}</tbody></table></div>`;
}

export const Empty = ({ title, children }) => html`<div class="notice"><h3>${title}</h3>${children}</div>`;

export function More({ next }) {
  const [busy, setBusy] = useState(false);
  if (!next) return null;
  const load = async () => { setBusy(true); try { await next(); } finally { setBusy(false); } };
  return html`<p><button disabled=${busy} onClick=${load}>${busy ? "Loading…" : "Show more"}</button></p>`;
}

export function Copy({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
    setTimeout(() => setDone(false), 2000);
  };
  return html`<button onClick=${copy} aria-live="polite">${done ? "Copied" : label}</button>`;
}

// A sheet that says what will happen, asks once, and shows why it did not.
export function Sheet({ title, children, action, danger, run, close, ready = true }) {
  const dialog = useRef();
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState();
  useEffect(() => { dialog.current.showModal(); }, []);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError();
    try {
      await run();
      close();
    } catch (failure) {
      setError(failure);
      setBusy(false);
    }
  };
  return html`<dialog ref=${dialog} onClose=${close} aria-labelledby="sheet-title">
    <form onSubmit=${submit}>
      <h2 id="sheet-title">${title}</h2>
      ${children}
      ${error && html`<p class="bad" role="alert">${error.message}${error.status === 409 && error.revision != null ? " Somebody changed it meanwhile: close this and look again." : ""}</p>`}
      <div class="actions">
        <button class=${danger ? "danger" : "primary"} disabled=${busy || !ready}>${busy ? "Working…" : action}</button>
        <button type="button" onClick=${() => dialog.current.close()}>Cancel</button>
      </div>
    </form>
  </dialog>`;
}

let show = () => {};
export const toast = (text) => show(text);
export function Toast() {
  const [text, setText] = useState("");
  show = setText;
  useEffect(() => {
    const timer = text && setTimeout(() => setText(""), 6000);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<div role="status" aria-live="polite">${text && html`<p class="toast">${text}</p>`}</div>`;
}

export function Tabs({ items, current }) {
  return html`<nav class="tabs" aria-label="Parts of this page">${items.map(([name, href, title]) => html`<a href=${href} aria-current=${name === current ? "page" : null}>${title}</a>`)}</nav>`;
}

// Move the focus to a page's heading, so that keyboard and screen reader begin there.
export function Heading({ children, title }) {
  useEffect(() => { document.title = `${title} · Mayfly`; }, [title]);
  return html`<h1>${children || title}</h1>`;
}

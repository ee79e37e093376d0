// Frame of the console: sign-in, navigation, keyboard, theme, and the page of the address.
import { html, render, useEffect, useLayoutEffect, useRef, useState } from "lib";
import { call, session } from "parts/api";
import { go, useRoute } from "parts/router";
import { Guard, Toast } from "parts/ui";
import { Audit } from "pages/audit";
import { Keys } from "pages/keys";
import { Model } from "pages/model";
import { Models } from "pages/models";
import { Uploads } from "pages/uploads";
import { Usage } from "pages/usage";

const PAGES = [["models", "Models", Models], ["uploads", "Uploads", Uploads], ["keys", "Keys", Keys], ["usage", "Usage", Usage], ["audit", "Audit", Audit]];
const THEMES = ["system", "light", "dark"];

function SignIn({ reason, done }) {
  const [error, setError] = useState(reason);
  const [busy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    session.key = new FormData(event.target).get("key").trim();
    try {
      await call("GET", "/models?limit=1");
      done();
    } catch (failure) {
      if (failure.status === 403) return done();
      session.key = "";
      setError(failure.message);
      setBusy(false);
    }
  };
  return html`<main class="signin"><h1>Mayfly</h1>
    <form class="stack" onSubmit=${submit}>
      <label>Access key<input name="key" type="password" autocomplete="off" required autofocus placeholder="mfy_…" aria-describedby="key-hint" /></label>
      <p class="hint" id="key-hint">make local prints one. On AWS: python -m mayfly keys create --stack NAME. It stays in this browser tab alone.</p>
      ${error && html`<p class="bad" role="alert">${error}</p>`}
      <button class="primary" disabled=${busy}>${busy ? "Signing in…" : "Sign in"}</button>
    </form></main>`;
}

function useTheme() {
  const [theme, setTheme] = useState(() => localStorage.getItem("mayfly.theme") || "system");
  useEffect(() => {
    localStorage.setItem("mayfly.theme", theme);
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }, [theme]);
  return [theme, setTheme];
}

function useShortcuts(showHelp) {
  useLayoutEffect(() => {
    let pending = "";
    const press = (event) => {
      if (event.target.closest("input, textarea, select, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
      const page = pending === "g" && PAGES.find(([name]) => name[0] === event.key);
      pending = event.key === "g" ? "g" : "";
      if (page) go([page[0]]);
      else if (event.key === "?") showHelp(true);
      else if (event.key === "/") {
        const search = document.querySelector("input[type=search]");
        if (search) search.focus(); else go(["models"]);
        event.preventDefault();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

function Help({ close }) {
  const dialog = useRef();
  useEffect(() => { dialog.current.showModal(); }, []);
  return html`<dialog ref=${dialog} onClose=${close} aria-labelledby="help-title"><div>
    <h2 id="help-title">Keys of the keyboard</h2>
    <dl class="facts"><dt>/</dt><dd>Search</dd>${PAGES.map(([name, title]) => html`<dt>g ${name[0]}</dt><dd>${title}</dd>`)}<dt>Esc</dt><dd>Close</dd></dl>
    <button onClick=${() => dialog.current.close()}>Close</button></div></dialog>`;
}

function Frame({ signOut }) {
  const { parts, query } = useRoute();
  const [theme, setTheme] = useTheme();
  const [help, setHelp] = useState(false);
  const main = useRef();
  useShortcuts(setHelp);
  const [name = "models"] = parts;
  const address = parts.join("/");
  useEffect(() => { main.current.focus({ preventScroll: true }); scrollTo(0, 0); }, [address]);
  const page = PAGES.find(([key]) => key === name);
  const Page = name === "models" && parts.length > 1 ? Model : page && page[2];
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>Skip to the content</a>
    <div class="frame">
      <nav class="side" aria-label="Console">
        <a class="brand" href="#/models">Mayfly</a>
        ${PAGES.map(([key, title]) => html`<a class="item" href="#/${key}" aria-current=${key === name ? "page" : null}>${title}</a>`)}
        <a class="item docs" href="../docs">API docs</a>
        <div class="foot">
          <label>Colours<select value=${theme} onChange=${(event) => setTheme(event.target.value)}>${THEMES.map((option) => html`<option value=${option}>${option}</option>`)}</select></label>
          ${session.key && html`<span>Key ${session.key.split("_")[1] || ""}</span><button onClick=${signOut}>Sign out</button>`}
        </div>
      </nav>
      <main id="main" tabindex="-1" ref=${main}>${Page ? html`<${Guard} title="This page"><${Page} parts=${parts} query=${query} /><//>` : html`<h1>There is no such page</h1><p><a href="#/models">Models</a></p>`}</main>
    </div>
    ${help && html`<${Help} close=${() => setHelp(false)} />`}<${Toast} />`;
}

function App() {
  const [refusal, setRefusal] = useState();
  const [open, setOpen] = useState(Boolean(session.key));
  const [asked, setAsked] = useState(Boolean(session.key));
  useEffect(() => session.onRefused((reason) => { if (session.key) { session.key = ""; setRefusal(reason); } setOpen(false); }), []);
  useEffect(() => {
    if (asked) return;
    call("GET", "/models?limit=1").then(() => setOpen(true), () => {}).then(() => setAsked(true));
  }, []);
  if (!asked) return html`<p class="boot">Mayfly</p>`;
  if (!open) return html`<${SignIn} reason=${refusal} done=${() => { setRefusal(); setOpen(true); }} />`;
  return html`<${Frame} signOut=${() => { session.key = ""; setOpen(false); }} />`;
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);

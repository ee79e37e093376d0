// Uploads: drop a file, watch its registration, and see what became of the others.
import { html, useEffect, useRef, useState } from "lib";
import { change, get, useLoad, usePages } from "parts/api";
import { bytes, count } from "parts/format";
import { link } from "parts/router";
import { Empty, Heading, Loaded, More, Rows, Sheet, State, Time, toast } from "parts/ui";
import { packageOf } from "parts/package";

const STEPS = ["uploading", "received", "registering", "READY"];
const TITLES = { uploading: "uploaded", received: "received", registering: "compiled and proven", READY: "ready" };
const NAME = "[A-Za-z0-9]([A-Za-z0-9._\\-]{0,126}[A-Za-z0-9])?";

export function Uploads() {
  const pages = usePages("/uploads?limit=25", "uploads");
  return html`<header class="page"><div><${Heading} title="Uploads" /></div></header>
    <${Drop} done=${pages.reload} />
    <${Loaded} load=${pages} height=${200}>${() => (pages.rows.length === 0 ? html`<${Empty} title="No upload in the last 30 days"><p>Drop a model above, or copy one: <code>aws s3 cp model.onnx s3://BUCKET/models/NAME/</code></p><//>` : html`<${Rows} heads=${[["Model"], ["State"], ["What happened"], ["Size", "num"], ["When"]]}>
      ${pages.rows.map((row) => html`<tr><td class="lead">${row.version ? html`<a href=${link(["models", row.model, "versions", String(row.version)])}><b>${row.model}</b> ${row.version}</a>` : html`<b>${row.model || "–"}</b>`}<span class="sub mono">${row.file}</span></td>
        <td><${State} state=${row.state} /></td>
        <td class="wide-text">${row.reason ? html`${row.reason.message}<span class="sub">${row.next_step}</span>` : html`${row.done && row.state === "READY" ? "" : html`<span class="muted">${row.next_step}</span>`}`}</td>
        <td class="num">${row.size_bytes ? bytes(row.size_bytes) : ""}</td><td><${Time} at=${row.received_at || row.created_at} /></td></tr>`)}<//><${More} next=${pages.next} />`)}<//>
    <${DeadLetters} />`;
}

function send(upload, file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(upload.method, upload.url);
    for (const [name, value] of Object.entries(upload.headers)) if (!/^(host|content-length)$/i.test(name)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => progress(event.loaded);
    request.onload = () => (request.status < 300 ? resolve() : reject(new Error(`storage refused the file (${request.status}): ${(/<Message>(.*?)<\/Message>/.exec(request.responseText) || [])[1] || "announce it again"}`)));
    request.onerror = () => reject(new Error("the connection to the storage broke: try again"));
    request.send(file);
  });
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

function Drop({ done }) {
  const [files, setFiles] = useState([]);
  const [model, setModel] = useState("");
  const [over, setOver] = useState(false);
  const [state, setState] = useState();
  const alive = useRef(true);
  useEffect(() => () => { alive.current = false; }, []);
  const choose = (list) => {
    const chosen = [...list];
    if (!chosen.length) return;
    setFiles(chosen);
    setState();
    const main = chosen.find((file) => /\.(onnx|gz|tgz)$/i.test(file.name)) || chosen[0];
    if (!model) setModel(main.name.replace(/\.(onnx|tar\.gz|tgz)$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+|[^A-Za-z0-9]+$/g, ""));
  };
  const upload = async (event) => {
    event.preventDefault();
    try {
      setState({ step: "uploading" });
      const parts = await packageOf(files), total = parts.reduce((sum, part) => sum + part.size_bytes, 0);
      let announced = {}, before = 0;
      for (const { blob, ...part } of parts) {
        announced = await change("POST", "/uploads", { model, ...part, ...(announced.package && { package: announced.package }) });
        await send(announced, blob, (sent) => setState({ step: "uploading", share: (before + sent) / total }));
        before += part.size_bytes;
      }
      for (let round = 0; alive.current && round < 600; round += 1) {
        const status = await get(`/uploads/${announced.id}`);
        setState({ step: status.state, status });
        if (status.done) break;
        await pause(Math.min(2, 0.3 + 0.1 * round));
      }
      done();
    } catch (error) {
      setState({ step: "failed", error });
    }
  };
  const busy = state && !state.error && !(state.status && state.status.done);
  return html`<form class="drop ${over ? "over" : ""}" onSubmit=${upload}
      onDragOver=${(event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}
      onDrop=${(event) => { event.preventDefault(); setOver(false); choose(event.dataTransfer.files); }}>
      <label>Drop a model here, or choose one<input type="file" multiple onChange=${(event) => choose(event.target.files)} /><span class="hint">model.onnx, with its weights and manifest.json if it has them, or model.tar.gz</span></label>
      ${files.length > 0 && html`<p>${files.map((file) => file.name).join(", ")} · ${bytes(files.reduce((sum, file) => sum + file.size, 0))}</p><label>Name of the model<input value=${model} required pattern=${NAME} maxlength="128" onInput=${(event) => setModel(event.target.value)} /></label>
        <button class="primary" disabled=${busy}>${busy ? "Working…" : "Upload"}</button>`}
      ${state && html`<${Progress} state=${state} model=${model} />`}</form>`;
}

function Progress({ state, model }) {
  const { status, error } = state, failed = error || (status && ["REJECTED", "ignored", "failed", "expired"].includes(status.state));
  const at = failed && status ? 2 : STEPS.indexOf(state.step === "waiting" ? "uploading" : state.step);
  return html`<div role="status" class="stack tight">
    ${!error && html`<ol class="steps">${STEPS.map((step, index) => html`<li class=${failed && index === at ? "failed" : index < at || state.step === "READY" ? "done" : index === at ? "now" : ""}>${TITLES[step]}${step === "uploading" && state.share != null ? ` ${Math.round(100 * state.share)} %` : ""}</li>`)}</ol>`}
    ${error && html`<p class="bad">${error.message}</p>`}
    ${failed && status && html`<p class="bad"><b>${status.state}</b> ${status.reason && status.reason.message}</p><p class="muted">${status.next_step}</p>`}
    ${status && status.state === "READY" && html`<p><b>Version ${status.version} is ready.</b> <a href=${link(["models", model, "try"], { version: status.version })}>Try it</a> · <a href=${link(["models", model, "versions", String(status.version)])}>its card</a></p>`}
    ${status && status.done && status.state === "received" && html`<p>${status.next_step}</p>`}</div>`;
}

function DeadLetters() {
  const [seen, setSeen] = useState(false), [asking, setAsking] = useState(false);
  return html`<section class="stack tight"><h2>Dead letters</h2><p class="muted">Uploads whose registration failed five times. Reading them takes a moment.</p>
    ${seen ? html`<${Letters} ask=${() => setAsking(true)} />` : html`<p><button onClick=${() => setSeen(true)}>Look</button></p>`}
    ${asking && html`<${Sheet} title="Register them once more?" action="Redrive" close=${() => { setAsking(false); setSeen(false); }} run=${async () => { await change("POST", "/dead-letters/redrive"); toast("The uploads are queued again."); }}>
      <p>All dead letters go back to the queue. Mend the cause first: else they return in an hour.</p><//>`}</section>`;
}

function Letters({ ask }) {
  const load = useLoad("/dead-letters");
  return html`<${Loaded} load=${load} height=${80}>${({ dead_letters: letters }) => (letters.length ? html`<div class="scroll" tabindex="0"><table><thead><tr><th>Upload</th><th>Reason</th><th>When</th></tr></thead><tbody>
    ${letters.map((letter) => html`<tr><td class="mono">${letter.key}</td><td>${letter.reason}</td><td><${Time} at=${letter.sent_at} /></td></tr>`)}</tbody></table></div><p><button onClick=${ask}>Register ${count(letters.length)} once more</button></p>` : html`<p>There are none.</p>`)}<//>`;
}

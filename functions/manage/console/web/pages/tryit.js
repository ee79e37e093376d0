// Try a model: a form made from its signature and sample, and the answer beside it.
import { html, useRef, useState } from "lib";
import { base, call, useLoad } from "parts/api";
import { shape } from "parts/format";
import { go } from "parts/router";
import { Copy, Guard, Loaded } from "parts/ui";
import { Answer } from "pages/answer";
import { Field } from "pages/fields";
import { Language } from "pages/language";

export function TryIt({ model, query }) {
  const alias = (model.aliases || {}).prod ? "prod" : Object.keys(model.aliases || {})[0];
  const wish = query.get("version") || alias;
  const version = (model.aliases || {})[wish] || wish;
  const load = useLoad(version && `/models/${encodeURIComponent(model.name)}/versions/${version}`);
  const sample = useLoad(version && `/models/${encodeURIComponent(model.name)}/versions/${version}/sample`);
  if (!version) return html`<p class="notice">No version of this model answers yet.</p>`;
  const choices = [...new Set([...Object.keys(model.aliases || {}), String(wish)])];
  return html`<label class="inline">Version<select value=${wish} onChange=${(event) => go(["models", model.name, "try"], { version: event.target.value })}>
      ${choices.map((choice) => html`<option value=${choice}>${choice}${(model.aliases || {})[choice] ? ` → ${model.aliases[choice]}` : ""}</option>`)}</select></label>
    <${Loaded} load=${load}>${(card) => (card.language ? html`<${Language} key=${`${model.name}/${version}`} model=${model.name} wish=${String(wish)} facts=${card.language} />` : sample.loading ? null : card.signature ? html`<${Form} key=${`${model.name}/${version}`} model=${model.name} wish=${String(wish)} card=${card} sample=${sample.data} />` : html`<p class="notice">This version has no signature: ${card.state}.</p>`)}<//>`;
}

// Inputs of a request: from the last try in this tab, else the sample, else zeros of the declared shape.
function first(model, signature, sample) {
  const kept = sessionStorage.getItem(`mayfly.try.${model}`);
  const inputs = (kept && JSON.parse(kept)) || (sample && sample.request && sample.request.inputs) || [];
  return signature.inputs.map((spec) => {
    const given = inputs.find((input) => input.name === spec.name && input.datatype === spec.datatype);
    if (given && Array.isArray(given.data)) return { name: spec.name, datatype: spec.datatype, shape: given.shape, data: given.data.flat(Infinity) };
    const dimensions = spec.shape.map((size) => (size < 0 ? 1 : size));
    return { name: spec.name, datatype: spec.datatype, shape: dimensions, data: new Array(Math.min(1e5, dimensions.reduce((a, b) => a * b, 1))).fill(spec.datatype === "BYTES" ? "" : spec.datatype === "BOOL" ? false : 0) };
  });
}

function Form({ model, wish, card, sample }) {
  const { signature } = card;
  const [inputs, setInputs] = useState(() => first(model, signature, sample));
  const [result, setResult] = useState();
  const [busy, setBusy] = useState(false);
  const flight = useRef();
  const path = `models/${encodeURIComponent(model)}/versions/${encodeURIComponent(wish)}/infer`;
  const run = async (request) => {
    if (flight.current) flight.current.abort();
    const abort = (flight.current = new AbortController());
    setBusy(true);
    const began = performance.now();
    try {
      const { document, headers } = await call("POST", `/${path}`, { inputs: request }, { root: "v2", raw: true, signal: abort.signal });
      setResult({ reply: document, ms: performance.now() - began, cold: headers.get("x-cold-start") === "1", timing: headers.get("server-timing") });
      setBusy(false);
    } catch (error) {
      if (error.name === "AbortError") return;
      setResult({ error });
      setBusy(false);
    }
  };
  const timer = useRef();
  const edit = (at, input, live) => {
    const next = inputs.map((before, index) => (index === at ? input : before));
    setInputs(next);
    if (JSON.stringify(next).length < 200_000) sessionStorage.setItem(`mayfly.try.${model}`, JSON.stringify(next));
    clearTimeout(timer.current);
    if (live) timer.current = setTimeout(() => run(next), 150);
  };
  const reset = () => { sessionStorage.removeItem(`mayfly.try.${model}`); setInputs(first(model, signature, sample)); };
  return html`<div class="columns">
      <form class="card" onSubmit=${(event) => { event.preventDefault(); run(inputs); }}>
        <h3>Request</h3>
        ${signature.inputs.map((spec, at) => html`<fieldset key=${spec.name} class="stack tight"><legend><b>${spec.name}</b> <span class="muted">${spec.datatype} ${shape(spec.shape)}</span></legend>
          ${spec.preprocessing && html`<p class="hint">${spec.preprocessing}</p>`}
          <${Guard} title="This input"><${Field} spec=${spec} input=${inputs[at]} sample=${sample && sample.request && sample.request.inputs.find((input) => input.name === spec.name)} edit=${(input, live) => edit(at, input, live)} /><//></fieldset>`)}
        <div class="actions"><button class="primary" disabled=${busy}>${busy ? "Running…" : "Run"}</button>
          <button type="button" onClick=${reset}>${sample ? "Use the sample" : "Reset"}</button></div>
      </form>
      <section class="card" aria-live="polite"><h3>Answer</h3><${Answer} result=${result} signature=${signature} /></section>
    </div>
    <${Snippets} model=${model} wish=${wish} inputs=${inputs} />`;
}

function Snippets({ model, wish, inputs }) {
  const [tab, setTab] = useState("curl");
  const body = JSON.stringify({ inputs });
  const short = body.length > 2000 ? `${body.slice(0, 1900)}…` : body;
  const root = base.replace(/\/$/, ""), one = inputs[0];
  const array = JSON.stringify(one.data).slice(0, 600) + (JSON.stringify(one.data).length > 600 ? "…" : "");
  const dtype = { FP32: "float32", FP64: "float64", FP16: "float16", INT64: "int64", INT32: "int32", INT8: "int8", UINT8: "uint8", BOOL: "bool", BYTES: "object" }[one.datatype] || one.datatype.toLowerCase();
  const python = `np.array(${array.replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False")}, dtype=np.${dtype}).reshape(${JSON.stringify(one.shape)})`;
  const texts = {
    curl: (request) => `curl -sS -H "authorization: Bearer $MAYFLY_KEY" -H "content-type: application/json" \\\n  ${root}/v2/models/${model}/versions/${wish}/infer \\\n  -d '${request.replace(/'/g, "'\\''")}'`,
    Python: () => `import os\nimport numpy as np\nfrom mayfly import Mayfly\n\nmodel = Mayfly("${root}", os.environ["MAYFLY_KEY"]).model("${model}")\nanswer = model.predict(\n    {"${one.name}": ${python}}\n)\nprint(answer)`,
    tritonclient: () => `import os\nimport numpy as np\nimport tritonclient.http as triton\n\nclient = triton.InferenceServerClient("${root.replace(/^https?:\/\//, "")}"${root.startsWith("https") ? ", ssl=True" : ""})\ntensor = triton.InferInput("${one.name}", ${JSON.stringify(one.shape)}, "${one.datatype}")\ntensor.set_data_from_numpy(${python})\nheaders = {"authorization": "Bearer " + os.environ["MAYFLY_KEY"]}\nreply = client.infer("${model}", [tensor], "${wish}", headers=headers)\nprint(reply.get_response())`,
    mayfly: () => `mayfly call ${model}:${wish} --sample`,
  };
  return html`<section class="stack tight"><h3>The same request in code</h3>
    <div class="tabs" role="tablist" aria-label="Languages">${Object.keys(texts).map((name) => html`<button type="button" role="tab" id=${`tab-${name}`} aria-controls="snippet" aria-selected=${name === tab ? "true" : "false"} onClick=${() => setTab(name)}>${name}</button>`)}</div>
    <div id="snippet" role="tabpanel" aria-labelledby=${`tab-${tab}`} class="stack tight"><pre class="code" tabindex="0">${texts[tab](short)}</pre>
    <div class="actions"><${Copy} key=${tab} text=${texts[tab](body)} /><span class="hint">$MAYFLY_KEY is your access key.</span></div></div></section>`;
}

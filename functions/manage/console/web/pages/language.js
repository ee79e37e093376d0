// Try a language model: a chat that streams, or the similarity of two texts.
import { html, useRef, useState } from "lib";
import { ApiError, base, call, get, session } from "parts/api";
import { count, ms } from "parts/format";
import { Problem } from "parts/ui";

const TOKENS = 256; // longest reply in the chat box
const GOES_ON = `The model writes on to the reply's end, at most ${TOKENS} tokens, and that is billed.`;

export function Language({ model, wish, facts }) {
  const name = `${model}:${wish}`;
  if (facts.kind === "encoder" && facts.reranker) return html`<p class="notice">A reranker: ask it by POST /v1/rerank.</p>`;
  return facts.kind === "encoder" ? html`<${Similarity} model=${model} name=${name} />` : html`<${Chat} model=${model} name=${name} chat=${facts.chat} />`;
}

// Documents of a streamed reply, while they come.
async function* events(path, body, signal) {
  const headers = { "content-type": "application/json", ...(session.key && { authorization: `Bearer ${session.key}` }) };
  const response = await fetch(`${base}v1${path}`, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => ({})));
  const reader = response.body.getReader(), decoder = new TextDecoder();
  for (let rest = "", complete = false; ;) {
    const { done, value } = await reader.read();
    if (done && complete) return;
    if (done) throw new Error("The reply ended before its last event: it is cut. Ask again.");
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.startsWith("data: ") ? part.slice(6) : "";
      complete = complete || data === "[DONE]";
      if (!data || data === "[DONE]") continue;
      const document = JSON.parse(data);
      if (document.error) throw new ApiError(500, document);
      yield document;
    }
  }
}

// Seconds and a request by the list prices that the usage page has, too.
async function price(model, seconds) {
  const today = new Date().toISOString().slice(0, 10);
  const { prices } = await get(`/models/${encodeURIComponent(model)}/usage?from=${today}`);
  return prices.request_usd + seconds * prices.second_usd;
}

function Chat({ model, name, chat }) {
  const [turns, setTurns] = useState([]);
  const [draft, setDraft] = useState(chat ? "What is the capital of France?" : "The capital of France is");
  const [busy, setBusy] = useState(false);
  const [note, setNote] = useState("");
  const [error, setError] = useState();
  const flight = useRef();
  const send = async (event) => {
    event.preventDefault();
    const asked = [...turns, { role: "user", content: draft }];
    const body = { model: name, stream: true, stream_options: { include_usage: true }, max_tokens: TOKENS, ...(chat ? { messages: asked } : { prompt: draft }) };
    flight.current = new AbortController();
    setTurns(asked); setDraft(""); setBusy(true); setError(); setNote("");
    const began = performance.now();
    let text = "", first = 0, usage, stopped = false;
    try {
      for await (const document of events(chat ? "/chat/completions" : "/completions", body, flight.current.signal)) {
        usage = document.usage || usage;
        const choice = document.choices[0];
        const piece = choice && (chat ? choice.delta.content : choice.text);
        if (!piece) continue;
        first = first || performance.now();
        text += piece;
        setTurns([...asked, { role: "assistant", content: text }]);
      }
    } catch (failure) {
      stopped = failure.name === "AbortError";
      if (!stopped) setError(failure);
    }
    setBusy(false);
    const ended = performance.now(), tokens = usage ? usage.completion_tokens : 0;
    const facts = [stopped && `Stopped here. ${GOES_ON}`, tokens && `${count(tokens)} tokens`, tokens > 1 && `${((tokens - 1) / ((ended - first) / 1000)).toFixed(1)} tokens per second`, first && `first after ${ms(first - began)}`].filter(Boolean);
    setNote(facts.join(" · "));
    if (tokens) price(model, (ended - began) / 1000).then((usd) => setNote([...facts, `about $${usd.toPrecision(2)}`].join(" · ")), () => {});
  };
  const again = () => { setTurns([]); setNote(""); setError(); };
  return html`<section class="card"><h2>${chat ? "Chat" : "Continue a text"}</h2>
    <ol class="chat" tabindex="0" aria-live="polite" aria-label="Messages">${turns.map((turn, at) => html`<li key=${at} class=${turn.role}><b class="small muted">${turn.role === "user" ? "You" : model}</b><p>${turn.content}</p></li>`)}</ol>
    ${error && html`<${Problem} error=${error} />`}
    ${note && html`<p class="small muted" role="status">${note}</p>`}
    <form class="stack tight" onSubmit=${send}>
      <label>Message<textarea value=${draft} onInput=${(event) => setDraft(event.target.value)} onKeyDown=${(event) => { if (event.key === "Enter" && !event.shiftKey && draft.trim() && !busy) send(event); }}></textarea></label>
      <div class="actions"><button class="primary" disabled=${busy || !draft.trim()}>${busy ? "Writing…" : "Send"}</button>
        ${busy && html`<button type="button" aria-describedby="stop-hint" onClick=${() => flight.current.abort()}>Stop</button><span class="hint" id="stop-hint">Stop ends the display alone. ${GOES_ON}</span>`}
        ${!busy && turns.length > 0 && html`<button type="button" onClick=${again}>New chat</button>`}</div>
    </form></section>`;
}

function Similarity({ model, name }) {
  const [texts, setTexts] = useState(["A man is eating.", "Someone has a meal."]);
  const [result, setResult] = useState();
  const [busy, setBusy] = useState(false);
  const edit = (at, text) => setTexts(texts.map((before, index) => (index === at ? text : before)));
  const compare = async (event) => {
    event.preventDefault();
    setBusy(true);
    const began = performance.now();
    try {
      const reply = await call("POST", "/embeddings", { model: name, input: texts, encoding_format: "float" }, { root: "v1" });
      const [a, b] = [...reply.data].sort((x, y) => x.index - y.index).map((row) => row.embedding);
      const seconds = (performance.now() - began) / 1000;
      const usd = await price(model, seconds).catch(() => undefined);
      setResult({ cosine: cosine(a, b), size: a.length, seconds, usd });
    } catch (error) {
      setResult({ error });
    }
    setBusy(false);
  };
  return html`<section class="card"><h2>Similarity of two texts</h2>
    <form class="stack tight" onSubmit=${compare}>
      ${texts.map((text, at) => html`<label>${at ? "Second text" : "First text"}<textarea value=${text} onInput=${(event) => edit(at, event.target.value)}></textarea></label>`)}
      <div class="actions"><button class="primary" disabled=${busy || !texts.every((text) => text.trim())}>${busy ? "Comparing…" : "Compare"}</button></div>
    </form>
    <div aria-live="polite">${result && (result.error ? html`<${Problem} error=${result.error} />` : html`<p><b data-similarity>${result.cosine.toFixed(4)}</b> <span class="muted">cosine of two vectors of ${count(result.size)} numbers · ${ms(1000 * result.seconds)}${result.usd ? ` · about $${result.usd.toPrecision(2)}` : ""}</span></p>`)}</div></section>`;
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, at) => sum + value * y[at], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b) || 1);
}

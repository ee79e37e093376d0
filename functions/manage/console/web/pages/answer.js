// An answer as labelled bars, numbers, pictures or text.
import { html, useEffect, useRef } from "lib";
import { ms, number, share, shape } from "parts/format";
import { Problem } from "parts/ui";
import { imageOf } from "pages/fields";

const BARS_MAX = 10;

export function Answer({ result, signature }) {
  if (!result) return html`<p class="muted">Run, and the answer stands here.</p>`;
  if (result.error) return html`<${Problem} error=${result.error} />`;
  const { reply } = result;
  return html`<p class="small muted">version ${reply.model_version} · ${ms(result.ms)} from here${result.cold ? " · cold start" : ""}</p>
    ${reply.outputs.map((output) => html`<div class="stack tight"><span><b>${output.name}</b> <span class="muted">${output.datatype} ${shape(output.shape)}</span></span>
      <${Output} output=${output} spec=${signature.outputs.find((spec) => spec.name === output.name) || output} /></div>`)}`;
}

function Output({ output, spec }) {
  const data = output.data || [], width = output.shape[output.shape.length - 1] || 1;
  if (output.datatype === "BYTES") return html`<pre class="code">${data.slice(0, 100).join("\n")}</pre>`;
  const image = imageOf({ ...output, shape: output.shape });
  if (image && data.length === image.channels * image.height * image.width) return html`<${Picture} output=${output} image=${image} />`;
  const one = data.length === width;
  if (one && width > 1 && (spec.labels || (width <= 64 && isShares(data)))) return html`<${Shares} data=${data} labels=${spec.labels} />`;
  if (data.length === 1) return html`<p style="font-size:28px">${spec.labels && Number.isInteger(data[0]) && spec.labels[data[0]] ? spec.labels[data[0]] : number(data[0])}</p>`;
  return html`<pre class="code">${rows(data, width)}</pre>`;
}

const isShares = (data) => data.every((value) => value >= 0 && value <= 1) && Math.abs(data.reduce((a, b) => a + b, 0) - 1) < 0.01;

function rows(data, width) {
  const lines = [];
  for (let at = 0; at < data.length && lines.length < 50; at += width) lines.push(data.slice(at, at + Math.min(width, 50)).map((value) => number(value)).join("  "));
  return lines.join("\n") + (data.length > 50 * width ? "\n…" : "");
}

function Shares({ data, labels }) {
  const shares = isShares(data);
  const entries = data.map((value, at) => ({ label: (labels && labels[at]) || String(at), value }));
  const shown = entries.length > BARS_MAX ? [...entries].sort((a, b) => b.value - a.value).slice(0, BARS_MAX) : entries;
  const top = Math.max(...data), low = shares ? 0 : Math.min(...data), span = (shares ? 1 : top - low) || 1;
  return html`<div class="bars">${shown.map(({ label, value }) => html`<span class=${value === top ? "top" : ""}>${label}</span><span class="track"><span class="fill ${value === top ? "top" : ""}" style=${`display:block;width:${(100 * (value - low)) / span}%`}></span></span><span class=${value === top ? "top" : "muted"} style="text-align:right">${shares ? share(value) : number(value)}</span>`)}</div>
    ${entries.length > shown.length && html`<p class="small muted">The highest ${BARS_MAX} of ${entries.length}.</p>`}`;
}

function Picture({ output, image }) {
  const canvas = useRef();
  useEffect(() => {
    const { width, height, channels, first } = image, plane = width * height, picture = new ImageData(width, height);
    const top = Math.max(...output.data), low = Math.min(...output.data), span = top - low || 1;
    for (let at = 0; at < plane; at += 1) {
      for (let channel = 0; channel < 3; channel += 1) {
        const from = channels === 1 ? 0 : channel;
        picture.data[4 * at + channel] = (255 * (output.data[first ? from * plane + at : at * channels + from] - low)) / span;
      }
      picture.data[4 * at + 3] = 255;
    }
    Object.assign(canvas.current, { width, height });
    canvas.current.getContext("2d").putImageData(picture, 0, 0);
  }, [output]);
  return html`<canvas class="pad" style="image-rendering:pixelated;cursor:default" ref=${canvas} role="img" aria-label="Picture of ${output.name}"></canvas>`;
}

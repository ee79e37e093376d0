// Fields for one input tensor: a pad to draw on, a picture, a sound, a table, a text, or JSON.
import { html, useEffect, useRef, useState } from "lib";

const CELLS_MAX = 64;
const size = (input) => input.shape.reduce((a, b) => a * b, 1);

// Height, width and channels of an image input, or null.
export function imageOf(spec) {
  const last = spec.shape.slice(-3);
  if (spec.datatype === "BYTES" || spec.shape.length < 3) return null;
  const [a, b, c] = last.map((dimension) => (dimension < 0 ? 0 : dimension));
  if ((a === 1 || a === 3) && b >= 8 && c >= 8) return { channels: a, height: b, width: c, first: true };
  if ((c === 1 || c === 3) && a >= 8 && b >= 8) return { channels: c, height: a, width: b, first: false };
  if (spec.shape.length === 3 && b >= 8 && c >= 8) return { channels: 1, height: b, width: c, first: true };
  return null;
}

export function Field({ spec, input, sample, edit }) {
  const image = imageOf(spec), columns = spec.shape[spec.shape.length - 1];
  if (image && image.height <= 64 && image.channels === 1) return html`<${Pad} spec=${spec} image=${image} input=${input} sample=${sample} edit=${edit} />`;
  if (image) return html`<${Picture} image=${image} input=${input} sample=${sample} edit=${edit} />`;
  if (spec.datatype === "BYTES" && !(spec.shape.length === 2 && columns > 0 && columns <= CELLS_MAX)) return html`<${Text} spec=${spec} input=${input} edit=${edit} />`;
  if (spec.shape.length === 2 && columns >= 2000 && spec.datatype.startsWith("FP")) return html`<${Sound} input=${input} length=${columns} edit=${edit} />`;
  if (spec.shape.length <= 2 && columns > 0 && columns <= CELLS_MAX) return html`<${Table} spec=${spec} input=${input} columns=${columns} edit=${edit} />`;
  return html`<${Json} input=${input} edit=${edit} />`;
}

// Range of the values that the model was shown: from its sample.
function scaleOf(spec, sample) {
  const data = sample && Array.isArray(sample.data) ? sample.data.flat(Infinity) : [];
  const top = data.reduce((most, value) => Math.max(most, value), 0);
  return top > 0 ? top : spec && spec.datatype === "UINT8" ? 255 : 1;
}

function paint(canvas, input, image, scale) {
  const { width, height, channels, first } = image, picture = new ImageData(width, height), plane = width * height;
  const low = Math.min(0, ...input.data.slice(0, plane * channels)), span = scale - low || 1;
  for (let at = 0; at < plane; at += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      const from = channels === 1 ? 0 : channel;
      const value = input.data[first ? from * plane + at : at * channels + from];
      picture.data[4 * at + channel] = (255 * (value - low)) / span;
    }
    picture.data[4 * at + 3] = 255;
  }
  const small = document.createElement("canvas");
  Object.assign(small, { width, height });
  small.getContext("2d").putImageData(picture, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

// Average the canvas down to the model's size: what the model sees of a drawing or a photo.
function read(canvas, image, scale, datatype) {
  const { width, height, channels, first } = image, plane = width * height;
  const small = document.createElement("canvas");
  Object.assign(small, { width, height });
  const context = small.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height).data, data = new Array(plane * channels);
  const round = /^U?INT/.test(datatype) ? Math.round : (value) => Math.round(value * 1e4) / 1e4;
  for (let at = 0; at < plane; at += 1) {
    const colour = [0, 1, 2].map((channel) => (scale * pixels[4 * at + channel]) / 255);
    const grey = (colour[0] + colour[1] + colour[2]) / 3;
    for (let channel = 0; channel < channels; channel += 1) {
      data[first ? channel * plane + at : at * channels + channel] = round(channels === 1 ? grey : colour[channel]);
    }
  }
  return data;
}

const withData = (input, image, data) => {
  const lead = input.shape.length - (image.first && input.shape.length === 3 && image.channels === 1 ? 2 : 3);
  return { ...input, shape: input.shape.map((dimension, at) => (at < lead ? 1 : dimension)), data };
};

function Pad({ spec, image, input, sample, edit }) {
  const canvas = useRef(), pen = useRef(), scale = scaleOf(spec, sample);
  useEffect(() => { paint(canvas.current, input, image, scale); }, []);
  const send = () => edit(withData(input, image, read(canvas.current, image, scale, spec.datatype)), true);
  const spot = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) * 280) / box.width, ((event.clientY - box.top) * 280) / box.height];
  };
  const down = (event) => { canvas.current.setPointerCapture(event.pointerId); pen.current = spot(event); move(event); };
  const move = (event) => {
    if (!pen.current) return;
    const context = canvas.current.getContext("2d"), to = spot(event);
    Object.assign(context, { strokeStyle: "#fff", lineWidth: 24, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...pen.current);
    context.lineTo(...to);
    context.stroke();
    pen.current = to;
    send();
  };
  const clear = () => { const context = canvas.current.getContext("2d"); context.fillStyle = "#000"; context.fillRect(0, 0, 280, 280); send(); };
  return html`<canvas class="pad" ref=${canvas} width="280" height="280" role="img" aria-label="Drawing pad for ${spec.name}: draw with a pointer, or choose a picture below"
      onPointerDown=${down} onPointerMove=${move} onPointerUp=${() => { pen.current = null; }} onPointerCancel=${() => { pen.current = null; }}></canvas>
    <div class="actions"><button type="button" onClick=${clear}>Clear</button><span class="hint">Draw: the answer follows. The model sees ${image.width} × ${image.height}.</span></div>
    <${Choose} canvas=${canvas} then=${send} />`;
}

function Picture({ image, input, sample, edit }) {
  const canvas = useRef(), scale = scaleOf(null, sample);
  useEffect(() => { paint(canvas.current, input, image, scale); }, []);
  const send = () => edit(withData(input, image, read(canvas.current, image, scale, input.datatype)), true);
  return html`<canvas class="pad" style="cursor:default" ref=${canvas} width="280" height="280" role="img" aria-label="Picture as the model sees it"></canvas><${Choose} canvas=${canvas} then=${send} />`;
}

function Choose({ canvas, then }) {
  const draw = async (file) => {
    if (!file) return;
    const bitmap = await createImageBitmap(file), side = Math.min(bitmap.width, bitmap.height);
    const context = canvas.current.getContext("2d");
    context.imageSmoothingEnabled = true;
    context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, canvas.current.width, canvas.current.height);
    then();
  };
  return html`<label class="small">Picture<input type="file" accept="image/*" onChange=${(event) => draw(event.target.files[0])}
    onDragOver=${(event) => event.preventDefault()} onDrop=${(event) => { event.preventDefault(); draw(event.dataTransfer.files[0]); }} /></label>`;
}

function Sound({ input, length, edit }) {
  const [name, setName] = useState("");
  const choose = async (file) => {
    if (!file) return;
    const rate = 16_000, context = new OfflineAudioContext(1, Math.max(1, length), rate);
    const sound = await context.decodeAudioData(await file.arrayBuffer());
    const source = context.createBufferSource();
    Object.assign(source, { buffer: sound });
    source.connect(context.destination);
    source.start();
    const samples = (await context.startRendering()).getChannelData(0);
    setName(`${file.name}: ${(sound.duration).toFixed(1)} s, sent as ${length} samples at 16 kHz`);
    edit({ ...input, shape: input.shape.map((dimension, at) => (at ? dimension : 1)), data: Array.from(samples, (value) => Math.round(value * 1e5) / 1e5) }, true);
  };
  return html`<label class="small">Sound<input type="file" accept="audio/*" onChange=${(event) => choose(event.target.files[0])} /></label><p class="hint">${name || `${length} samples`}</p>`;
}

function Text({ spec, input, edit }) {
  const lines = input.data.length > 1 || spec.shape.length > 1;
  const change = (text) => {
    const data = spec.shape.length === 1 && spec.shape[0] < 0 ? text.split("\n") : [text];
    edit({ ...input, data, shape: spec.shape.length === 1 ? [data.length] : input.shape.map((dimension, at) => (spec.shape[at] < 0 ? 1 : dimension)) });
  };
  return html`<textarea aria-label=${spec.name} value=${input.data.join("\n")} onInput=${(event) => change(event.target.value)}></textarea>${!lines && html`<p class="hint">One row a line.</p>`}`;
}

function Table({ spec, input, columns, edit }) {
  const rows = Math.max(1, Math.ceil(size(input) / columns)), names = spec.columns || Array.from({ length: columns }, (_, at) => String(at));
  const parse = (text) => (spec.datatype === "BYTES" ? text : spec.datatype === "BOOL" ? text === "true" : text === "" || Number.isNaN(Number(text)) ? text : Number(text));
  const set = (at, text) => edit({ ...input, data: input.data.map((before, index) => (index === at ? parse(text) : before)) });
  const resize = (count) => edit({ ...input, shape: spec.shape.length === 1 ? input.shape : [count, columns], data: Array.from({ length: count * columns }, (_, at) => input.data[at % input.data.length] ?? 0) });
  const paste = (event, at) => {
    const cells = event.clipboardData.getData("text").trim().split(/\n/).map((line) => line.split(/\t|,/).map((cell) => parse(cell.trim())));
    if (cells.length === 1 && cells[0].length === 1) return;
    event.preventDefault();
    const data = [...input.data], row = Math.floor(at / columns), column = at % columns;
    cells.forEach((line, down) => line.forEach((cell, right) => { if (column + right < columns) data[(row + down) * columns + column + right] = cell; }));
    const count = Math.max(rows, row + cells.length);
    edit({ ...input, shape: spec.shape.length === 1 ? input.shape : [count, columns], data: Array.from({ length: count * columns }, (_, index) => data[index] ?? (spec.datatype === "BYTES" ? "" : 0)) });
  };
  return html`<div class="scroll" tabindex="0"><table><thead><tr>${names.map((name) => html`<th>${String(name).replace(/_/g, " ")}</th>`)}</tr></thead><tbody>
    ${Array.from({ length: rows }, (_, row) => html`<tr>${names.map((name, column) => html`<td><input style="min-width:88px" inputmode=${spec.datatype === "BYTES" ? "text" : "decimal"} aria-label="${name}, row ${row + 1}" value=${String(input.data[row * columns + column])} onChange=${(event) => set(row * columns + column, event.target.value)} onPaste=${(event) => paste(event, row * columns + column)} /></td>`)}</tr>`)}</tbody></table></div>
    ${spec.shape[0] < 0 && spec.shape.length === 2 && html`<div class="actions"><button type="button" onClick=${() => resize(rows + 1)}>Add a row</button>${rows > 1 && html`<button type="button" onClick=${() => resize(rows - 1)}>Remove the last</button>`}<span class="hint">Paste from a spreadsheet.</span></div>`}`;
}

function Json({ input, edit }) {
  const [text, setText] = useState(() => JSON.stringify({ shape: input.shape, data: input.data }));
  const [wrong, setWrong] = useState("");
  const change = (value) => {
    setText(value);
    try {
      const { shape, data } = JSON.parse(value);
      setWrong(Array.isArray(shape) && Array.isArray(data) ? "" : "shape and data must be lists");
      if (Array.isArray(shape) && Array.isArray(data)) edit({ ...input, shape, data });
    } catch (error) { setWrong(`no JSON: ${error.message}`); }
  };
  return html`<textarea class="mono" aria-label="${input.name} as JSON" value=${text} onInput=${(event) => change(event.target.value)}></textarea>${wrong && html`<p class="bad small" role="alert">${wrong}</p>`}`;
}

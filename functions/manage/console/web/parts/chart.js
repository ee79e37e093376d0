// Charts in SVG: few, small, readable by keyboard and screen reader, in the colours of the page.
import { html, useState } from "lib";
import { count, ms, number } from "parts/format";

const WIDTH = 600;

// The smallest of 1, 2 and 5 × 10^n that is not below `most`: the top of an axis.
export function roundUp(most) {
  const unit = 10 ** Math.floor(Math.log10(most > 0 ? most : 1));
  return [1, 2, 5, 10].find((step) => step * unit >= most * 0.9999) * unit;
}

// A series over time as bars, or up to two as lines. `points` are [{ label, values }], a value for each of `names`, null
// where nothing was measured; the second of two bars is the part of the first that failed. The reading above follows the
// pointer or the arrow keys, and is `summary` without them.
export function Series({ title, names, points, summary, lines, format = number, height = 112 }) {
  const [at, setAt] = useState(-1);
  const known = points.flatMap((point) => point.values).filter((value) => value != null);
  const most = Math.max(0, ...known), top = roundUp(most), step = WIDTH / Math.max(1, points.length);
  const y = (value) => height - 1 - (value / top) * (height - 3);
  const clamp = (index) => Math.max(0, Math.min(points.length - 1, index));
  const point = (event) => clamp(Math.floor(((event.clientX - event.currentTarget.getBoundingClientRect().left) / event.currentTarget.clientWidth) * points.length));
  const press = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    setAt(clamp(at < 0 ? (by > 0 ? 0 : points.length - 1) : at + by));
  };
  const reading = points[at] ? html`<b>${points[at].label}</b> ${names.map((name, index) => html`<span class="key k${index}">${name} ${points[at].values[index] == null ? "–" : format(points[at].values[index])}</span>`)}`
    : html`${names.length > 1 && names.map((name, index) => html`<span class="key k${index}">${name}</span>`)} ${summary}`;
  return html`<figure class="card chart ${lines ? "lines" : ""}"><figcaption><h3>${title}</h3><p class="small muted reading" aria-live="polite">${reading}</p></figcaption>
    ${most === 0 ? html`<p class="muted none" style=${`height:${height + 15}px`}>Nothing in this span.</p>` : html`<div class="plot"><span class="axis"><span>${format(top)}</span><span>${format(0)}</span></span>
      <svg viewBox="0 0 ${WIDTH} ${height}" height=${height} preserveAspectRatio="none" role="img" tabindex="0" aria-label="${title}${summary ? `: ${summary}` : ""}. Arrow keys read single points."
        onPointerMove=${(event) => setAt(point(event))} onPointerLeave=${() => setAt(-1)} onBlur=${() => setAt(-1)} onKeyDown=${press}>
        <line class="base" x1="0" x2=${WIDTH} y1="1" y2="1" /><line class="base" x1="0" x2=${WIDTH} y1=${height / 2} y2=${height / 2} /><line class="base" x1="0" x2=${WIDTH} y1=${height - 1} y2=${height - 1} />
        ${at >= 0 && html`<rect class="cursor" x=${at * step} y="0" width=${step} height=${height} />`}
        ${lines ? names.map((name, index) => html`<path class="line s${index}" d=${path(points.map((row) => row.values[index]), step, y)} />`) : points.map((row, index) => html`<${Bar} x=${index * step} width=${step} values=${row.values} y=${y} floor=${height - 1} />`)}
      </svg>
      <span class="axis under"><span>${points[0].label}</span><span>${points[Math.floor(points.length / 2)].label}</span><span>${points[points.length - 1].label}</span></span></div>`}
  </figure>`;
}

function Bar({ x, width, values: [value, bad], y, floor }) {
  if (!value) return null;
  const thick = Math.max(1, width - (width > 8 ? 2 : 1)), low = bad ? Math.min(floor - 2, y(bad)) : floor;
  return html`<rect class="bar" x=${x} y=${Math.min(floor - 1, y(value))} width=${thick} height=${Math.max(1, floor - y(value))} />${bad > 0 && html`<rect class="err" x=${x} y=${low} width=${thick} height=${floor - low} />`}`;
}

// A line through what was measured; a single point is a short stroke.
function path(values, step, y) {
  return values.map((value, at) => {
    if (value == null) return "";
    const x = (at + 0.5) * step, alone = values[at - 1] == null && values[at + 1] == null;
    if (alone) return `M${(x - step / 3).toFixed(1)} ${y(value).toFixed(1)}h${(step / 1.5).toFixed(1)}`;
    return `${values[at - 1] == null ? "M" : "L"}${x.toFixed(1)} ${y(value).toFixed(1)}`;
  }).join("");
}

// The last day of a model in a row of the list: requests with errors in red, and p50 as a line.
export function Spark({ points }) {
  const total = points.reduce((sum, row) => sum + row.requests, 0), bad = points.reduce((sum, row) => sum + row.errors, 0);
  const most = Math.max(1, ...points.map((row) => row.requests)), step = 96 / points.length;
  return html`<svg viewBox="0 0 96 24" width="96" height="24" role="img" aria-label="${count(total)} requests, ${count(bad)} errors in the last 24 hours">
    <line class="base" x1="0" x2="96" y1="23.5" y2="23.5" />
    ${points.map((row, at) => html`<${Bar} x=${at * step} width=${step} values=${[row.requests, row.errors]} y=${(value) => 23 - (21 * value) / most} floor=${23} />`)}</svg>`;
}

export function LatencySpark({ points }) {
  const values = points.map((row) => row.p50), known = values.filter((value) => value != null);
  if (known.length < 2) return null;
  const most = Math.max(...known);
  return html`<svg viewBox="0 0 64 24" width="64" height="24" role="img" aria-label="p50 by hour, at most ${ms(most)}"><path class="line s0" d=${path(values, 64 / points.length, (value) => 22 - (20 * value) / most)} /></svg>`;
}

// A value with its interval among others on one axis: [{ label, value, low, high, other }].
export function Range({ rows, name }) {
  const numbers = rows.flatMap((row) => [row.value, row.low, row.high]).filter((value) => typeof value === "number");
  const low = Math.min(...numbers), high = Math.max(...numbers), span = high - low || Math.abs(high) || 1;
  const x = (value) => 6 + (148 * (value - low)) / span;
  return html`<svg viewBox="0 0 160 20" width="160" height="20" role="img" aria-label="${name}: ${rows.map((row) => `${row.label} ${number(row.value)}`).join(", ")}">
    <line class="base" x1="0" x2="160" y1="10" y2="10" />
    ${[...rows].reverse().map((row) => html`<g class=${row.other ? "other" : ""}><title>${row.label}: ${number(row.value)}</title>${row.low != null && html`<line class="whisker" x1=${x(row.low)} x2=${x(row.high)} y1="10" y2="10" />`}<circle class="dot" cx=${x(row.value)} cy="10" r="4" /></g>`)}</svg>`;
}

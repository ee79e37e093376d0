// Charts in SVG: few, small, readable by a screen reader, in the colours of the page.
import { html } from "lib";
import { number } from "parts/format";

// Bars of requests with errors in red on them; `points` are [{label, value, bad}].
export function Bars({ points, height = 120, title, format = number }) {
  const most = Math.max(1e-9, ...points.map((point) => point.value));
  const total = points.reduce((sum, point) => sum + point.value, 0);
  const width = 600, gap = 100 / points.length > 2 ? 2 : 1, step = width / Math.max(1, points.length);
  return html`<figure class="stack tight">
    ${title && html`<figcaption class="small muted">${title}: ${format(total)}, at most ${format(most < 1e-8 ? 0 : most)}</figcaption>`}
    <svg viewBox="0 0 ${width} ${height}" width="100%" height=${height} preserveAspectRatio="none" role="img" aria-label="${title || "Requests"}: ${format(total)} in all">
      <line class="base" x1="0" x2=${width} y1=${height - 0.5} y2=${height - 0.5} />
      ${points.map((point, at) => {
        const tall = (point.value / most) * (height - 4), bad = ((point.bad || 0) / most) * (height - 4);
        return html`<g><title>${point.label}: ${format(point.value)}${point.bad ? `, ${format(point.bad)} errors` : ""}</title>
          <rect x=${at * step} y="0" width=${step} height=${height} fill="transparent" />
          <rect class="bar" x=${at * step} y=${height - tall} width=${Math.max(1, step - gap)} height=${tall} />
          ${bad > 0 && html`<rect class="err" x=${at * step} y=${height - Math.max(2, bad)} width=${Math.max(1, step - gap)} height=${Math.max(2, bad)} />`}</g>`;
      })}
    </svg>
    ${points.length > 1 && html`<div class="actions small muted" style="justify-content:space-between"><span>${points[0].label}</span><span>${points[points.length - 1].label}</span></div>`}
  </figure>`;
}

export function Spark({ points }) {
  if (!points || !points.length) return html`<span class="muted">–</span>`;
  const most = Math.max(1, ...points.map((point) => point.value));
  const total = points.reduce((sum, point) => sum + point.value, 0), bad = points.reduce((sum, point) => sum + (point.bad || 0), 0);
  return html`<svg viewBox="0 0 96 24" width="96" height="24" role="img" aria-label="${total} requests, ${bad} errors in the last 24 hours">
    <line class="base" x1="0" x2="96" y1="23.5" y2="23.5" />
    ${points.map((point, at) => html`<rect class="bar" x=${(at * 96) / points.length} y=${24 - (22 * point.value) / most} width=${Math.max(1, 96 / points.length - 1)} height=${(22 * point.value) / most} />
      ${point.bad > 0 && html`<rect class="err" x=${(at * 96) / points.length} y=${24 - Math.max(2, (22 * point.bad) / most)} width=${Math.max(1, 96 / points.length - 1)} height=${Math.max(2, (22 * point.bad) / most)} />`}`)}
  </svg>`;
}

// Values with intervals on one axis: [{label, value, low, high}].
export function Intervals({ rows, name }) {
  const numbers = rows.flatMap((row) => [row.value, row.low, row.high]).filter((value) => typeof value === "number");
  const low = Math.min(...numbers), high = Math.max(...numbers), span = high - low || Math.abs(high) || 1;
  const x = (value) => 90 + (300 * (value - low + 0.08 * span)) / (1.16 * span);
  return html`<svg viewBox="0 0 480 ${rows.length * 28}" width="100%" style="max-width:480px" role="img"
    aria-label="${name}: ${rows.map((row) => `${row.label} ${number(row.value)}`).join(", ")}">
    ${rows.map((row, at) => html`<g transform="translate(0 ${at * 28})">
      <text x="0" y="18">${row.label}</text>
      ${row.low != null && html`<line class="whisker" x1=${x(row.low)} x2=${x(row.high)} y1="14" y2="14" />`}
      <circle class="dot ${row.other ? "other" : ""}" cx=${x(row.value)} cy="14" r="4" />
      <text x="410" y="18">${number(row.value)}</text></g>`)}
  </svg>`;
}

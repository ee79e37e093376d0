// Pictures of a training run, drawn from the numbers that its manifest holds.
import { html } from "lib";
import { Series } from "parts/chart";
import { count, number, share } from "parts/format";

const plain = (name) => name.replace(/^validation_/, "").replace(/_/g, " ");

export function Figures({ evaluation, metric }) {
  const { learning, confusion, residuals } = evaluation.figures || {}, { calibration, classes, groups } = evaluation;
  const shown = learning || confusion || residuals || (calibration && calibration.bins) || (classes && classes.length) || groups;
  if (!shown) return null;
  return html`<h3 class="section">Report of the training</h3><div class="columns two">
    ${learning && html`<${Learning} learning=${learning} />`}
    ${confusion && html`<${Confusion} confusion=${confusion} />`}
    ${calibration && calibration.bins && html`<${Reliability} calibration=${calibration} />`}
    ${residuals && html`<${Series} title="Errors on held-out rows" names=${["rows"]} format=${count} summary="predicted minus actual, the middle 99 %"
      points=${residuals.counts.map((rows, at) => ({ label: number((residuals.edges[at] + residuals.edges[at + 1]) / 2), values: [rows] }))} />`}
    ${classes && classes.length > 0 && html`<section class="card"><h3>Weakest classes</h3><${Table} rows=${classes.slice(0, 5)} names=${["label", "rows", "precision", "recall", "f1"]} /></section>`}
    ${groups && groups.worst && html`<section class="card"><h3>Weakest groups <span class="muted">of ${count(groups.count)} by ${groups.by}</span></h3><${Table} rows=${groups.worst.slice(0, 5)} names=${["group", "rows", metric]} /></section>`}
  </div>`;
}

function Learning({ learning }) {
  const { epoch, loss, validation_loss: held, ...scores } = learning, points = (...columns) => epoch.map((at, index) => ({ label: `epoch ${at}`, values: columns.map((column) => (column ? column[index] : null)) }));
  return html`${(loss || held) && html`<${Series} lines title="Loss" names=${["training", "validation"]} points=${points(loss, held)} />`}
    ${Object.entries(scores).map(([name, column]) => html`<${Series} lines title="Validation: ${plain(name)}" names=${[plain(name)]} summary="at the end ${number(column[column.length - 1])}" points=${points(column)} />`)}`;
}

function Confusion({ confusion: { labels, counts, classes } }) {
  const rows = counts.map((row) => row.reduce((a, b) => a + b, 0) || 1);
  return html`<section class="card"><h3>Confusion <span class="muted">rows are actual classes${classes > labels.length ? `, the ${labels.length} most confused of ${count(classes)}` : ""}</span></h3>
    <div class="scroll" tabindex="0"><table class="matrix"><thead><tr><td></td>${labels.map((label) => html`<th scope="col" title=${label}>${label}</th>`)}</tr></thead><tbody>
    ${counts.map((row, at) => html`<tr><th scope="row" title=${labels[at]}>${labels[at]}</th>${row.map((value, to) => html`<td title="${labels[at]} taken for ${labels[to]}: ${count(value)} of ${count(rows[at])}" style=${`background:color-mix(in srgb, var(${at === to ? "--accent" : "--bad"}) ${Math.round((50 * value) / rows[at] + (value ? 4 : 0))}%, transparent)`}>${value || ""}</td>`)}</tr>`)}</tbody></table></div></section>`;
}

function Reliability({ calibration: { bins, expected_error: off } }) {
  const most = Math.max(...bins.map((bin) => bin.rows)), at = (value) => 8 + 184 * value;
  return html`<section class="card"><h3>Confidence <span class="muted">against the share that is right; off by ${share(off)} on average</span></h3>
    <svg viewBox="0 0 200 200" width="200" height="200" role="img" aria-label="Reliability: ${bins.map((bin) => `${share(bin.confidence, 0)} sure, ${share(bin.accuracy, 0)} right`).join("; ")}">
      <rect class="frame-line" x="8" y="8" width="184" height="184" /><line class="base" x1="8" y1="192" x2="192" y2="8" />
      ${bins.map((bin) => html`<g><title>${share(bin.confidence)} sure, ${share(bin.accuracy)} right, ${count(bin.rows)} rows</title><circle class="dot" cx=${at(bin.confidence)} cy=${200 - at(bin.accuracy)} r=${3 + 5 * Math.sqrt(bin.rows / most)} /></g>`)}</svg></section>`;
}

function Table({ rows, names }) {
  return html`<div class="scroll" tabindex="0"><table><thead><tr>${names.map((name, at) => html`<th class=${at ? "num" : ""}>${plain(name)}</th>`)}</tr></thead><tbody>${rows.map((row) => html`<tr>${names.map((name, at) => html`<td class=${at ? "num" : ""}>${number(row[name])}</td>`)}</tr>`)}</tbody></table></div>`;
}

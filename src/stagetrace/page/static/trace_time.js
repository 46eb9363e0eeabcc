// The axis of time, and the range that is selected on it: its sums by stage.

import { html, scale, stageClass, svg } from "./trace_bars.js";
import { ms } from "./trace_state.js";

export function drawAxis(state, axis) {
  const width = axis.clientWidth;
  const x = scale(state.view, width);
  const count = Math.max(2, Math.floor(width / 110));
  const step = niceStep((state.view[1] - state.view[0]) / count);
  const made = [];
  for (let at = Math.ceil(state.view[0] / step) * step; at <= state.view[1]; at += step) {
    const left = x(at);
    made.push(svg("line", { x1: left, x2: left, y1: 14, y2: 20 }));
    const anchor = left < 20 ? "start" : left > width - 30 ? "end" : "middle";
    made.push(svg("text", { x: left, y: 11, "text-anchor": anchor }, `${Number((at / 1e6).toPrecision(6))} ms`));
  }
  axis.replaceChildren(...made);
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= least);
}

// [stage, ns, class] of the spans within a range: stages of each service, or, without any, the outermost spans.
export function sums(state) {
  const [start, end] = state.range;
  const hasStages = state.rows.some((row) => row.kind === "stage");
  const several = new Set(state.rows.filter((row) => row.kind === "stage").map((row) => row.service)).size > 1;
  const found = new Map();
  for (const row of state.rows) {
    if (hasStages ? row.kind !== "stage" : row.depth > 0) continue;
    const took = Math.min(end, row.at + row.took) - Math.max(start, row.at);
    if (took <= 0) continue;
    const name = hasStages ? (several ? `${row.service} ${row.name}` : row.name) : `${row.service} ${row.name}`;
    const [before] = found.get(name) || [0];
    found.set(name, [before + took, row.stage]);
  }
  return [...found].sort((one, other) => other[1][0] - one[1][0]);
}

export function drawSums(state, element) {
  element.hidden = !state.range;
  if (!state.range) return;
  const [start, end] = state.range;
  const table = html("table", "sums");
  table.append(html("caption", "", `${ms(start)} to ${ms(end)}: ${ms(end - start)}, by stage`));
  const head = table.createTHead().insertRow();
  for (const name of ["stage", "time", "share of the range"]) {
    const cell = html("th", name === "stage" ? "" : "n", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const [name, [took, stage]] of sums(state)) {
    const line = body.insertRow();
    const first = html("th");
    first.scope = "row";
    first.append(html("span", `swatch ${stageClass(stage)}`), ` ${name}`);
    line.append(first, html("td", "n", ms(took)), html("td", "n", `${((100 * took) / (end - start)).toFixed(1)} %`));
  }
  const clear = html("button", "", "Clear the range");
  clear.type = "button";
  clear.addEventListener("click", () => {
    state.range = null;
    state.toUrl(true);
    state.changed();
  });
  element.replaceChildren(table, ...(body.rows.length ? [] : [html("p", "soft", "No stage is within this range.")]), clear);
}

// The band over the picture that shows the range.
export function drawBand(state, band, left, width) {
  band.hidden = !state.range;
  if (!state.range) return;
  const x = scale(state.view, width);
  band.style.left = `${left + Math.max(x(state.range[0]), 0)}px`;
  band.style.width = `${Math.max(x(state.range[1]) - Math.max(x(state.range[0]), 0), 1)}px`;
}

// Call `selected(start, end)` where a range was dragged over the element, in ns; `area` gives its left edge and width.
export function dragging(element, state, area, selected) {
  let from = null;
  const at = (event) => {
    const { left, width } = area();
    const part = Math.min(Math.max((event.clientX - left) / width, 0), 1);
    return state.view[0] + part * (state.view[1] - state.view[0]);
  };
  element.addEventListener("pointerdown", (event) => {
    const { left } = area();
    if (event.button === 0 && event.clientX >= left && !event.target.closest("a, button")) from = event;
  });
  element.addEventListener("pointermove", (event) => {
    if (!from || Math.abs(event.clientX - from.clientX) < 5) return;
    if (!element.hasPointerCapture(event.pointerId)) element.setPointerCapture(event.pointerId);
    const [one, other] = [at(from), at(event)];
    selected(Math.min(one, other), Math.max(one, other), false);
  });
  element.addEventListener("pointerup", (event) => {
    const isDrag = from && Math.abs(event.clientX - from.clientX) >= 5;
    if (isDrag) selected(...[at(from), at(event)].sort((one, other) => one - other), true);
    from = null;
  });
  element.addEventListener("pointercancel", () => (from = null));
}

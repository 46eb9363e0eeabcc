// Bars of spans, for the waterfall and the flame graph: SVG made of numbers, and text only as text.

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

export function html(name, classes = "", text = null) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== null) made.textContent = text;
  return made;
}

// The pattern of unseen time, once for the page.
export function hatching() {
  if (document.getElementById("hatching")) return;
  const root = svg("svg", { width: 0, height: 0, "aria-hidden": "true", class: "defs" });
  const pattern = svg("pattern", { id: "hatching", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(svg("rect", { width: 6, height: 6, class: "hatch-back" }), svg("rect", { width: 2.5, height: 6, class: "hatch-line" }));
  root.append(pattern);
  document.body.append(root);
}

export const STAGES = ["network.receive", "queue", "preprocess", "handler", "inference", "postprocess", "network.send"];
export const stageClass = (stage) => `stage-${STAGES.includes(stage) ? stage.replaceAll(".", "-") : "other"}`;

// From ns to pixels of a picture that is `width` wide, no further than its edges.
export function scale(view, width) {
  const each = width / (view[1] - view[0]);
  return (ns) => Math.min(Math.max((ns - view[0]) * each, -3), width + 3);
}

// Intervals in pixels, [left, width]: those that are less than half a pixel apart are one, so that thousands are few.
function strips(intervals, x) {
  const found = [];
  for (const [start, end] of intervals || []) {
    const [left, right] = [x(start), x(end)];
    const last = found[found.length - 1];
    if (last && left - last[1] < 0.5) last[1] = Math.max(last[1], right);
    else found.push([left, right]);
  }
  return found.map(([left, right]) => [left, Math.max(right - left, 1)]);
}

// The elements of one span's bar, `height` high from `top` on.
export function bar(row, x, top, height) {
  const left = x(row.at);
  const width = Math.max(x(row.at + row.took) - left, 1.5);
  const group = svg("g", { class: `bar ${row.kind} ${row.stage ? stageClass(row.stage) : "plain"}${row.error ? " failed" : ""}` });
  const inset = row.kind === "entry" ? 0.75 : 0;
  group.append(
    svg("rect", { class: "body", x: left + inset, y: top + inset, width: Math.max(width - 2 * inset, 0.5), height: height - 2 * inset, rx: row.kind === "entry" ? 2 : 1 }),
  );
  for (const [from, wide] of strips(row.hatched, x)) {
    group.append(svg("rect", { class: "unseen", x: from, y: top, width: wide, height }));
  }
  for (const [from, wide] of strips(row.path, x)) {
    group.append(svg("rect", { class: "path", x: from, y: top + height, width: wide, height: 2 }));
  }
  return group;
}

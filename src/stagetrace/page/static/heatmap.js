// The heat map: draws the cells, and lets a box be drawn by mouse or keyboard. The box is in the URL; what distinguishes it
// is the part `box`, which is asked for again when the URL changes. A box is [first column, first row, last column, last row].

import { drawMoments } from "./moments.js";
import { colour, data } from "./page.js";

const FIELDS = ["from", "to", "least_ms", "most_ms"];
const EDGE = { left: 66, right: 10, top: 8, bottom: 24 };
const DRAG = 4; // pixels: less is a click
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

class Heat {
  constructor(element, found) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.tip = element.querySelector(".tip");
    this.found = found;
    this.columns = found.times.length - 1;
    this.rows = found.edges.length - 1;
    this.cells = new Map(found.cells.map((cell) => [cell[1] * this.columns + cell[0], cell]));
    this.most = Math.max(...found.cells.map((cell) => cell[2]));
    this.below = this.shares();
    // The lowest row may begin at 0, which no logarithm has.
    this.logs = found.edges.map((edge, place) => Math.log2(edge || found.edges[place + 1] / 2));
    const lines = found.lines.map(([ms]) => Math.log2(ms)).filter(Number.isFinite);
    this.low = Math.min(...this.logs, ...lines);
    this.high = Math.max(...this.logs, ...lines);
    const room = (this.high - this.low) * 0.03;
    [this.low, this.high] = [this.low - (lines.length ? room : 0), this.high + room];
    this.cursor = null; // [column, row]
    this.anchor = null; // where a box begins that is being drawn
    this.box = null; // the one of the URL, as the part `box` has it
  }

  // Of each row the share of the requests that are shorter, and, at the end, 1.
  shares() {
    const sums = new Array(this.rows).fill(0);
    for (const [, row, requests] of this.found.cells) sums[row] += requests;
    const all = sums.reduce((a, b) => a + b, 0);
    let upto = 0;
    return [0, ...sums.map((one) => (upto += one) / all)];
  }

  get pending() {
    if (!this.anchor) return null;
    const [a, b] = [this.anchor, this.cursor];
    return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  }

  x(ms) {
    const length = this.found.width_ms * this.columns;
    return EDGE.left + ((ms - this.found.origin_ms) / length) * (this.width - EDGE.left - EDGE.right);
  }

  columnX(column) {
    return EDGE.left + (column / this.columns) * (this.width - EDGE.left - EDGE.right);
  }

  y(log) {
    return EDGE.top + ((this.high - log) / (this.high - this.low)) * (this.height - EDGE.top - EDGE.bottom);
  }

  // The cell at a place of the element, the nearest one outside of the picture.
  at(x, y) {
    const wide = this.width - EDGE.left - EDGE.right;
    const column = Math.floor(((x - EDGE.left) / wide) * this.columns);
    const log = this.high - ((y - EDGE.top) / (this.height - EDGE.top - EDGE.bottom)) * (this.high - this.low);
    let row = this.logs.findLastIndex((edge) => edge <= log);
    row = Math.max(0, Math.min(this.rows - 1, row));
    return [Math.max(0, Math.min(this.columns - 1, column)), row];
  }

  draw() {
    const scale = window.devicePixelRatio || 1;
    [this.width, this.height] = [this.element.clientWidth, this.element.clientHeight];
    [this.canvas.width, this.canvas.height] = [Math.round(this.width * scale), Math.round(this.height * scale)];
    const pen = this.canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.font = "12px system-ui, sans-serif";
    this.drawAxes(pen);
    this.drawCells(pen);
    this.drawLines(pen);
    this.drawBox(pen, this.box && this.pixels(this.box), colour("accent"), []);
    this.drawBox(pen, this.pending && this.pixelsOf(this.pending), colour("text"), [5, 3]);
    if (this.cursor) {
      const [left, top, right, bottom] = this.pixelsOf([...this.cursor, ...this.cursor]);
      pen.strokeStyle = colour("text");
      pen.lineWidth = 1.5;
      pen.strokeRect(left - 1, top - 1, right - left + 2, bottom - top + 2);
    }
  }

  drawAxes(pen) {
    const [text, line] = [colour("soft-text"), colour("line")];
    pen.fillStyle = text;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    let free = Infinity;
    for (const ms of roundNumbers(2 ** this.low, 2 ** this.high)) {
      const y = this.y(Math.log2(ms));
      if (free - y < 16) continue;
      free = y;
      pen.fillText(`${ms.toLocaleString("en")} ms`, EDGE.left - 6, y);
      pen.fillStyle = line;
      pen.fillRect(EDGE.left, Math.round(y), this.width - EDGE.left - EDGE.right, 1);
      pen.fillStyle = text;
    }
    pen.textAlign = "center";
    free = EDGE.left - 20;
    for (const [ms, label] of this.found.ticks) {
      const [x, half] = [this.x(ms), pen.measureText(label).width / 2];
      if (x - half < free || x + half > this.width) continue;
      free = x + half + 12;
      pen.fillText(label, x, this.height - EDGE.bottom + 14);
      pen.fillRect(Math.round(x), this.height - EDGE.bottom, 1, 4);
    }
    pen.textAlign = "left";
  }

  drawCells(pen) {
    const names = ["heat-low", "heat", "heat-bad-low", "heat-bad"];
    const [low, high, badLow, badHigh] = names.map((name) => channels(colour(name)));
    for (const [column, row, requests, breaches] of this.found.cells) {
      const much = Math.sqrt(requests / this.most);
      const bad = breaches > 0 ? 0.5 + (0.5 * breaches) / requests : 0;
      pen.fillStyle = `rgb(${mixed(mixed(low, high, much), mixed(badLow, badHigh, much), bad).map(Math.round).join(" ")})`;
      const [left, top, right, bottom] = this.pixelsOf([column, row, column, row]);
      pen.fillRect(left, top, Math.max(1, right - left), Math.max(1, bottom - top));
    }
  }

  drawLines(pen) {
    pen.strokeStyle = pen.fillStyle = colour("bad");
    pen.lineWidth = 1.5;
    pen.setLineDash([6, 4]);
    pen.textAlign = "right";
    pen.textBaseline = "bottom";
    for (const [ms, name] of this.found.lines) {
      const y = this.y(Math.log2(ms));
      pen.beginPath();
      pen.moveTo(EDGE.left, y);
      pen.lineTo(this.width - EDGE.right, y);
      pen.stroke();
      const label = `${Number(ms.toFixed(3))} ms · ${name}`;
      const [room, wide] = [this.width - EDGE.right - 4, pen.measureText(label).width];
      const ink = pen.fillStyle;
      pen.fillStyle = colour("surface");
      pen.globalAlpha = 0.8;
      pen.fillRect(room - wide - 3, y - 17, wide + 6, 15);
      pen.globalAlpha = 1;
      pen.fillStyle = ink;
      pen.fillText(label, room, y - 2);
    }
    pen.setLineDash([]);
  }

  drawBox(pen, pixels, ink, dashes) {
    if (!pixels) return;
    const [left, top, right, bottom] = pixels;
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = 2;
    pen.setLineDash(dashes);
    pen.strokeRect(left, top, right - left, bottom - top);
    pen.globalAlpha = 0.1;
    pen.fillRect(left, top, right - left, bottom - top);
    pen.globalAlpha = 1;
    pen.setLineDash([]);
  }

  // Where cells are drawn: whole pixels, so that no gap is between them.
  pixelsOf([column, row, lastColumn, lastRow]) {
    const edges = [this.columnX(column), this.y(this.logs[lastRow + 1]), this.columnX(lastColumn + 1), this.y(this.logs[row])];
    return edges.map(Math.round);
  }

  // Where the box of the URL is drawn; its ends may be open, or outside of the picture.
  pixels(box) {
    const within = (value, low, high) => Math.max(low, Math.min(high, value));
    const across = (ms, open) => (ms === null ? open : within(this.x(ms), EDGE.left, this.width - EDGE.right));
    const down = (ms, open) => (ms ? within(this.y(Math.log2(ms)), EDGE.top, this.height - EDGE.bottom) : open);
    return [
      across(box.from, EDGE.left), down(box.most, EDGE.top),
      across(box.to, this.width - EDGE.right), down(box.least, this.height - EDGE.bottom),
    ];
  }

  describe([column, row]) {
    const [, , requests, breaches] = this.cells.get(row * this.columns + column) || [0, 0, 0, 0];
    const { times, edges, judged, zone, mark } = this.found;
    const counts = [`${mark}${shown(requests)} ${requests === 1 ? "request" : "requests"}`];
    if (judged) counts.push(`${shown(breaches)} ${breaches === 1 ? "breach" : "breaches"}`);
    return [
      `${plain(times[column])} to ${sameDay(times[column], times[column + 1])} ${zone}`,
      `${short(edges[row])} to ${short(edges[row + 1])} ms, p${rank(this.below[row])} to p${rank(this.below[row + 1])} of all here`,
      counts.join(", "),
    ];
  }

  point(cell, isSpoken) {
    const lines = this.describe(cell);
    this.tip.textContent = lines.join("\n");
    this.tip.hidden = false;
    const [left, top, right] = this.pixelsOf([...cell, ...cell]);
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${right + wide + 12 < this.width ? right + 8 : Math.max(0, left - wide - 8)}px`;
    this.tip.style.top = `${Math.max(0, top - this.tip.offsetHeight / 2)}px`;
    if (isSpoken) document.getElementById("heat-now").textContent = lines.join("; ");
  }

  leave() {
    this.tip.hidden = true;
  }

  // The parameters of the URL that select these cells.
  params([column, row, lastColumn, lastRow]) {
    const { times, edges } = this.found;
    return [times[column], times[lastColumn + 1], edges[row], edges[lastRow + 1]].map(String);
  }
}

// 1, 2 and 5 times powers of ten.
function roundNumbers(low, high) {
  const made = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const one of [1, 2, 5]) made.push(Number((one * 10 ** power).toPrecision(1)));
  }
  return made.filter((one) => one >= low && one <= high);
}

function channels(text) {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

function mixed(one, other, share) {
  return one.map((value, place) => value + (other[place] - value) * share);
}

function rank(share) {
  const percent = 100 * share;
  return percent > 99 && percent < 100 ? percent.toFixed(2) : percent.toFixed(0);
}

function shown(count) {
  return count.toLocaleString("en", { maximumFractionDigits: count < 10 ? 1 : 0 });
}

function short(ms) {
  return ms >= 100 ? ms.toFixed(0) : Number(ms.toPrecision(3)).toString();
}

function plain(time) {
  return time.replace("T", " ").replace(/Z$|[+-]\d\d:\d\d$/, "");
}

// The end of a stretch of time, without its day if that is the day of its start.
function sameDay(start, end) {
  const [from, to] = [plain(start).split(" "), plain(end).split(" ")];
  return from[0] === to[0] ? to[1] : to.join(" ");
}

let heat = null;

// Select these parameters, none of them for an empty list: in the URL, the forms, and what is below.
function select(values) {
  const url = boxed(new URL(location.href), new URLSearchParams(values.map((value, place) => [FIELDS[place], value])));
  if (url.href !== location.href) history.pushState(null, "", url);
  follow();
}

// Return a link with the box of these parameters.
function boxed(url, params) {
  for (const name of FIELDS) {
    if (params.has(name)) url.searchParams.set(name, params.get(name));
    else url.searchParams.delete(name);
  }
  return url;
}

// Show what the URL asks for.
function follow() {
  const { searchParams } = new URL(location.href);
  for (const name of FIELDS) {
    for (const field of document.querySelectorAll(`form input[name=${name}]`)) field.value = searchParams.get(name) || "";
  }
  for (const link of document.querySelectorAll("#filter a")) link.href = boxed(new URL(link.href), searchParams);
  const part = document.getElementById("box");
  const address = `${part.getAttribute("hx-get").split("?")[0]}${location.search}`;
  part.setAttribute("hx-get", address);
  part.setAttribute("hx-sync", "this:replace"); // the newest box is the one to be shown
  window.htmx.ajax("GET", address, { source: part, target: part, swap: "innerHTML" });
}

function finish() {
  const box = heat.pending;
  if (!box) return;
  heat.anchor = null;
  select(heat.params(box));
  heat.draw();
}

function byMouse(element) {
  let from = null;
  const place = (event) => {
    const bounds = element.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = place(event);
    element.setPointerCapture(event.pointerId);
  });
  element.addEventListener("pointermove", (event) => {
    const now = place(event);
    const cell = heat.at(...now);
    if (from && (heat.anchor || Math.hypot(now[0] - from[0], now[1] - from[1]) >= DRAG)) {
      heat.anchor ||= heat.at(...from);
      heat.cursor = cell;
      heat.draw();
    }
    heat.point(cell, false);
  });
  element.addEventListener("pointerup", (event) => {
    if (!from) return;
    from = null;
    if (heat.anchor) {
      finish();
      return;
    }
    heat.cursor = heat.at(...place(event));
    heat.point(heat.cursor, true);
    heat.draw();
  });
  element.addEventListener("pointercancel", () => {
    from = heat.anchor = null;
    heat.draw();
  });
  element.addEventListener("pointerleave", () => heat.leave());
}

function byKeyboard(element) {
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") finish();
    else if (event.key === "Escape") clear();
    else if (event.key in ARROWS) step(ARROWS[event.key], event.shiftKey);
    else return;
    event.preventDefault();
  });
  element.addEventListener("blur", () => heat.leave());
}

function step([right, up], isBox) {
  if (!heat.cursor) {
    heat.cursor = [heat.columns - 1, heat.found.cells.at(-1)[1]];
  } else {
    if (!isBox) heat.anchor = null;
    else heat.anchor ||= heat.cursor;
    const [column, row] = heat.cursor;
    heat.cursor = [
      Math.max(0, Math.min(heat.columns - 1, column + right)),
      Math.max(0, Math.min(heat.rows - 1, row + up)),
    ];
  }
  heat.point(heat.cursor, true);
  heat.draw();
}

// Clear the box that is being drawn or, if there is none, the one that is selected.
function clear() {
  const wasDrawing = heat.anchor !== null;
  heat.anchor = null;
  if (!wasDrawing) select([]);
  heat.draw();
}

function begin() {
  const [element, found] = [document.getElementById("heat"), data("heat-data")];
  heat = element && found ? new Heat(element, found) : null;
  if (!heat) return;
  document.getElementById("heat-most").textContent = shown(heat.most);
  heat.box = data("box-data");
  byMouse(element);
  byKeyboard(element);
  new ResizeObserver(() => heat.draw()).observe(element);
  const list = document.querySelector("#cells .moments-list");
  drawMoments(element.querySelector(".plot"), list, found.origin_ms, found.origin_ms + found.width_ms * heat.columns);
}

document.addEventListener("stagetrace:part", (event) => {
  if (event.target.id === "cells") begin();
  else if (heat) {
    heat.box = data("box-data");
    heat.draw();
  }
});
document.addEventListener("stagetrace:theme", () => heat?.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => heat?.draw());
addEventListener("resize", () => heat?.draw()); // zooming changes how many pixels there are
addEventListener("popstate", follow);
// Going back changes the box alone: htmx need not ask for the whole page.
document.addEventListener("htmx:before:history:restore", (event) => event.preventDefault());
document.getElementById("box-clear").addEventListener("click", (event) => {
  event.preventDefault();
  if (heat) heat.anchor = null;
  select([]);
});

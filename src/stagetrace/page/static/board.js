// The board: its two pictures, which share their cursor, and asking again while the tab is visible.

import { drawMoments } from "./moments.js";
import { colour, data } from "./page.js";

const AGAIN_MS = 10_000;
const HEIGHTS = { bars: 210, rate: 96 };
const TITLE = document.title;
const WHOLE = { incrs: [1, 2, 5].flatMap((one) => [0, 1, 2, 3, 4, 5, 6, 7, 8].map((power) => one * 10 ** power)).sort((a, b) => a - b) };
const shown = { values: null, bars: null, rate: null };

// Each bar is drawn over the ones before it, so that the first series stands lowest: sums of what is still to come.
function stacked(values) {
  const sums = values.labels.slice(0, -1).map(() => 0);
  return values.series.map((one) => one.values.map((count, place) => (sums[place] += count))).reverse();
}

function rates(values) {
  return [values.requests, values.breaches].map((counts) => counts.map((count, place) => count / values.seconds[place]));
}

function places(values) {
  return values.requests.map((_, place) => place);
}

function axes(element, steps) {
  const ticks = (chart) => {
    const many = shown.values.requests.length;
    const step = Math.max(1, Math.ceil(many / Math.max(1, Math.floor(chart.width / 110))));
    return Array.from({ length: Math.ceil(many / step) }, (_, place) => place * step);
  };
  const look = { stroke: () => colour("soft-text"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false } };
  const font = `12px ${getComputedStyle(element).fontFamily}`;
  return [
    { ...look, font, size: 26, grid: { show: false }, splits: ticks, values: (_, all) => all.map((place) => shown.values.labels[place]) },
    { ...look, ...steps, font, size: 52, space: 18 },
  ];
}

function made(element, height, series, columns, steps = {}) {
  const options = {
    width: element.clientWidth,
    height,
    legend: { show: false },
    cursor: { sync: { key: "board" }, y: false, points: { show: false }, drag: { x: true, y: false, setScale: false } },
    scales: {
      x: { time: false, range: () => [-0.5, shown.values.requests.length - 0.5] },
      y: { range: (_, low, high) => [0, high > 0 ? high * 1.05 : 1] },
    },
    axes: axes(element, steps),
    series: [{}, ...series],
    hooks: { setCursor: [(chart) => tell(chart.cursor.idx)], setSelect: [selected] },
  };
  const chart = new uPlot(options, [places(shown.values), ...columns], element);
  chart.over.addEventListener("click", () => narrow(chart.cursor.idx, chart.cursor.idx));
  new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height })).observe(element);
  return chart;
}

function barSeries(values) {
  const paths = uPlot.paths.bars({ size: [0.86, 60] });
  return values.series.map((one) => ({ paths, points: { show: false }, width: 0, fill: () => colour(one.colour) })).reverse();
}

function rateSeries() {
  const line = (name) => ({ points: { show: false }, width: 1.5, stroke: () => colour(name), fill: () => `${colour(name)}22` });
  return [line("accent"), line("bad")];
}

// Draws the pictures, or gives those that are there new numbers; then what happened meanwhile.
function show() {
  showNumbers();
  const chart = shown.bars || shown.rate;
  if (!chart) return;
  const { starts_ms: starts } = shown.values;
  drawMoments(chart.over, document.querySelector("#now .moments-list"), starts[0], starts.at(-1));
}

function showNumbers() {
  const values = data("board-data");
  document.title = values?.missed ? `${values.missed} missed · ${TITLE}` : TITLE;
  const elements = { bars: document.getElementById("board-bars"), rate: document.getElementById("board-rate") };
  if (!values || !elements.bars) {
    shown.bars = shown.rate = null;
    return;
  }
  const names = (one) => JSON.stringify(one?.series.map((series) => series.name));
  const isSame = names(shown.values) === names(values) && shown.rate?.root.isConnected;
  shown.values = values;
  elements.bars.classList.toggle("empty", !values.series.length);
  if (isSame) {
    shown.bars?.setData([places(values), ...stacked(values)]);
    shown.rate.setData([places(values), ...rates(values)]);
    return;
  }
  for (const element of Object.values(elements)) element.replaceChildren();
  shown.bars = values.series.length ? made(elements.bars, HEIGHTS.bars, barSeries(values), stacked(values), WHOLE) : null;
  shown.rate = made(elements.rate, HEIGHTS.rate, rateSeries(), rates(values));
  elements.bars.onkeydown = keys;
}

// Writes the numbers of one bar below the picture.
function tell(place) {
  const { values } = shown;
  const told = document.querySelector(".readout");
  if (place == null || !values.labels[place] || !told) {
    if (told) told.textContent = "";
    return;
  }
  const parts = values.series.filter((one) => one.values[place]).map((one) => `${one.name} ${one.values[place].toLocaleString("en")}`);
  const counts = `${values.breaches[place].toLocaleString("en")} breaches of ${values.requests[place].toLocaleString("en")} requests`;
  told.textContent = `${values.labels[place]} to ${values.labels[place + 1]}: ${counts}${parts.length ? ` (${parts.join(", ")})` : ""}`;
}

function selected(chart) {
  const { left, width } = chart.select;
  if (width < 4) return;
  const last = shown.values.requests.length - 1;
  const [first, end] = [left, left + width].map((at) => Math.min(last, Math.max(0, Math.round(chart.posToVal(at, "x")))));
  narrow(first, end);
}

// Opens the board of the time from one bar to another.
function narrow(first, last) {
  if (first == null) return;
  const url = new URL(location.href);
  const [since, until] = [shown.values.starts_ms[first], shown.values.starts_ms[last + 1]];
  url.searchParams.set("since", new Date(since).toISOString().replace(".000", ""));
  url.searchParams.set("until", new Date(until).toISOString().replace(".000", ""));
  location.assign(url);
}

function keys(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const chart = shown.bars;
  const last = shown.values.requests.length - 1;
  if (step && chart) {
    const now = chart.cursor.idx ?? (step > 0 ? -1 : last + 1);
    const next = Math.min(last, Math.max(0, now + step));
    chart.setCursor({ left: chart.valToPos(next, "x"), top: 1 });
    event.preventDefault();
  } else if (event.key === "Enter" && chart?.cursor.idx != null) narrow(chart.cursor.idx, chart.cursor.idx);
}

function repaint() {
  for (const chart of [shown.bars, shown.rate]) chart?.redraw(false, true);
}

// Asks again every ten seconds, and at once when the tab is looked at after a longer time.
function stayFresh() {
  let asked = Date.now();
  const again = () => {
    if (document.hidden || Date.now() - asked < AGAIN_MS) return;
    asked = Date.now();
    document.body.dispatchEvent(new Event("refresh"));
  };
  setInterval(again, AGAIN_MS / 10);
  document.addEventListener("visibilitychange", again);
}

document.addEventListener("stagetrace:part", (event) => {
  if (event.target.id === "now") show();
});
document.addEventListener("stagetrace:theme", repaint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
if (document.querySelector("[data-again]")) stayFresh();

// The view of one trace: the pictures, the panel of a span, the cards of evidence, and keys.

import { data } from "./page.js";
import { hatching } from "./trace_bars.js";
import { Flames } from "./trace_flame.js";
import { Rows } from "./trace_rows.js";
import { show as showStall } from "./trace_stalls.js";
import { State } from "./trace_state.js";
import { drawAxis, drawBand, drawSums, dragging } from "./trace_time.js";

const by = (id) => document.getElementById(id);
let shown = null; // the trace that is drawn: its state, and `move`, `open`, `close` ...

function draw(picture) {
  const state = new State(picture);
  const rows = new Rows(state, by("waterfall"), by("axis"));
  const say = (text) => (by("shown").textContent = text);
  const flames = new Flames(state, by("flames"), say);
  const area = () => {
    const box = (state.isFlame ? by("flames") : by("axis")).getBoundingClientRect();
    return { left: box.left, width: box.width };
  };
  const show = () => {
    by("picture").classList.toggle("flame", state.isFlame);
    by("flame").setAttribute("aria-pressed", String(state.isFlame));
    by("critical").setAttribute("aria-pressed", String(state.isCritical));
    flames.draw();
    drawAxis(state, by("axis"));
    rows.draw();
    if (!state.isFlame) say(count(state));
    const { left, width } = area();
    drawBand(state, by("band"), left - by("picture").getBoundingClientRect().left, width);
    drawSums(state, by("sums"));
    showRange(state);
  };
  state.listeners.push(show);
  shown = { state, rows, area };
  legend(state);
  buttons(state);
  pointers(state);
  cards(state);
  rangeFields(state);
  rank(state);
  show();
  if (state.byKey.has(state.open)) rows.reveal(false);
  if (state.open) load(state.open);
}

function count(state) {
  const seen = state.visible().length;
  const all = state.rows.length.toLocaleString("en");
  return seen === state.rows.length ? `${all} of ${all} spans` : `${seen.toLocaleString("en")} of ${all} spans, the others are folded`;
}

function legend(state) {
  const rows = state.rows;
  const texts = [];
  if (rows.some((row) => row.path)) texts.push("line below a bar: on the critical path, the end waited for it");
  if (rows.some((row) => row.hatched)) texts.push("hatched: unseen time, waiting that no span shows (how long is measured, not when)");
  if (rows.some((row) => row.stalls)) texts.push("triangles: where it stood while it was late (from above its own stack, from below what was in its way)");
  if (rows.some((row) => row.count)) texts.push("×N: the sum of N visits or calls, which took turns with the lines beside it");
  texts.push("drag over the picture: sums by stage");
  by("legend").textContent = texts.join(" · ");
}

// The percentiles, once they are there: at the spans, and, of breaches, what took more than usual.
function rank(state) {
  const { chips, unusual } = data("trace-ranks") || { chips: {}, unusual: {} };
  state.ranks = chips;
  for (const place of document.querySelectorAll("[data-usual]")) {
    const text = unusual[place.dataset.usual];
    place.hidden = !text;
    place.textContent = text ? `more than usual: ${text}` : "";
  }
}

// What moves and changes the picture.

function move(step) {
  const { state, rows } = shown;
  const order = state.visible();
  const place = Math.max(order.indexOf(state.current), 0);
  select(order[Math.min(Math.max(place + step, 0), order.length - 1)]);
  rows.reveal(true);
}

function select(number) {
  const { state } = shown;
  state.current = number;
  light(state.rows[number].key);
  if (state.open !== null) open(false);
  state.changed();
}

function open(isStep) {
  const { state } = shown;
  const { key } = state.rows[state.current];
  if (state.open === key) return;
  state.open = key;
  state.toUrl(isStep);
  load(key);
  state.changed();
}

function load(key) {
  const panel = by("span-panel");
  const url = new URL(panel.dataset.url, location.href);
  for (const [name, value] of new URLSearchParams(location.search)) {
    if (name === "tz") url.searchParams.set(name, value);
  }
  url.searchParams.set("span", key);
  panel.hidden = false;
  document.body.classList.add("with-panel");
  window.htmx.ajax("GET", url.pathname + url.search, { target: "#span-content", swap: "innerHTML" });
}

function close(isStep) {
  const { state, rows } = shown;
  by("span-panel").hidden = true;
  document.body.classList.remove("with-panel");
  if (state.open === null) return;
  state.open = null;
  if (isStep) state.toUrl(true);
  state.changed();
  rows.reveal(true);
}

function fold() {
  const { state } = shown;
  const { current, rows } = state;
  if (rows[current].after === current + 1) return;
  if (!state.folded.delete(current)) state.folded.add(current);
  state.changed();
}

function toggle(name) {
  const { state } = shown;
  state[name] = !state[name];
  state.toUrl(true);
  state.changed();
}

function setRange(start, end, isDone) {
  const { state } = shown;
  state.range = [start, end];
  if (isDone) state.toUrl(true);
  state.changed();
}

// Evidence: a card and its spans light up together; so do a stack and its mark.

function light(key, mark = null) {
  for (const card of document.querySelectorAll("[data-spans]")) {
    const isLit = mark ? card.dataset.stall === mark : key !== null && card.dataset.spans.split(" ").includes(key);
    card.classList.toggle("lit", isLit);
  }
}

function cards(state) {
  for (const card of document.querySelectorAll("[data-spans]")) {
    const keys = card.dataset.spans.split(" ");
    const set = (lit, stall) => {
      state.lit = new Set(lit);
      state.litStall = stall;
      state.changed();
    };
    const on = () => set(keys, card.dataset.stall);
    const off = () => !card.contains(document.activeElement) && set([], null);
    card.addEventListener("mouseenter", on);
    card.addEventListener("focusin", on);
    card.addEventListener("mouseleave", off);
    card.addEventListener("focusout", (event) => !card.contains(event.relatedTarget) && set([], null));
    const go = () => {
      select(state.byKey.get(keys[0]) ?? 0);
      shown.rows.reveal(false);
    };
    card.addEventListener("click", (event) => !event.target.closest("details, a") && go());
    card.addEventListener("keydown", (event) => event.key === "Enter" && event.target === card && go());
  }
}

function pointers(state) {
  const picture = by("picture");
  const row = (event) => event.target.closest("[data-number]");
  let dragged = false;
  dragging(picture, state, () => shown.area(), (start, end, isDone) => {
    dragged = true;
    setRange(start, end, isDone);
  });
  picture.addEventListener("pointerdown", () => (dragged = false));
  picture.addEventListener("click", (event) => {
    const found = row(event);
    if (dragged || !found) return;
    const { mark } = event.target.dataset;
    if (mark) {
      showStall(mark);
      return;
    }
    select(Number(found.dataset.number));
    if (event.target.closest(".twisty")) fold();
    else open(true);
  });
  picture.addEventListener("mouseover", (event) => light(row(event)?.dataset.key ?? null, event.target.dataset.mark));
  picture.addEventListener("mouseleave", () => light(null));
  picture.addEventListener("focusin", (event) => {
    const found = row(event);
    if (found) state.current = Number(found.dataset.number);
    light(found?.dataset.key ?? null, event.target.dataset.mark);
  });
  picture.addEventListener("focusout", () => light(null));
  picture.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    state.zoom(event.deltaY > 0 ? 1.25 : 0.8);
  }, { passive: false });
}

function rangeFields(state) {
  const fields = [by("range-from"), by("range-to")];
  for (const field of fields) {
    field.addEventListener("change", () => {
      const [start, end] = fields.map((one, place) => (one.value ? Number(one.value) * 1e6 : [0, state.took][place]));
      if (start >= 0 && start < end) setRange(start, end, true);
    });
  }
}

function showRange(state) {
  if (document.activeElement?.closest(".range")) return;
  by("range-from").value = state.range ? (state.range[0] / 1e6).toFixed(2) : "";
  by("range-to").value = state.range ? (state.range[1] / 1e6).toFixed(2) : "";
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS there is no clipboard but this.
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  by("copied").textContent = "Copied";
}

function buttons(state) {
  by("flame").addEventListener("click", () => toggle("isFlame"));
  by("critical").addEventListener("click", () => toggle("isCritical"));
  by("zoom-in").addEventListener("click", () => state.zoom(0.5));
  by("zoom-out").addEventListener("click", () => state.zoom(2));
  by("zoom-all").addEventListener("click", () => state.zoomAll());
  by("copy-command").addEventListener("click", () => copy(by("command").textContent));
  by("copy-json").addEventListener("click", async (event) => {
    const response = await fetch(event.target.dataset.url);
    if (response.ok) await copy(await response.text());
    else by("copied").textContent = `Not copied: the page answered ${response.status}`;
  });
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  Home: () => move(-Infinity),
  End: () => move(Infinity),
  Enter: () => {
    open(true);
    by("span-panel").focus();
  },
  Escape: () => close(true),
  x: fold,
  f: () => toggle("isFlame"),
  p: () => toggle("isCritical"),
  "+": () => shown.state.zoom(0.5),
  "=": () => shown.state.zoom(0.5),
  w: () => shown.state.zoom(0.5),
  "-": () => shown.state.zoom(2),
  s: () => shown.state.zoom(2),
  ArrowLeft: () => shown.state.zoom(1, -0.25),
  a: () => shown.state.zoom(1, -0.25),
  ArrowRight: () => shown.state.zoom(1, 0.25),
  d: () => shown.state.zoom(1, 0.25),
  0: () => shown.state.zoomAll(),
};

// Before the page's own keys: j and k are of rows that may not be in the document yet.
document.addEventListener("keydown", (event) => {
  const action = KEYS[event.key];
  if (!shown || !action || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "Enter" && event.target.closest("a, button, summary, [data-spans]")) return;
  if (event.key === "Escape" && shown.state.open === null) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  action();
}, { capture: true });

document.addEventListener("click", (event) => event.target.closest("#close-span") && close(true));

window.addEventListener("popstate", () => {
  if (!shown) return;
  const { state, rows } = shown;
  const before = state.open;
  state.fromUrl();
  if (state.open === null) {
    by("span-panel").hidden = true;
    document.body.classList.remove("with-panel");
  } else if (state.open !== before) load(state.open);
  state.changed();
  rows.reveal(false);
});

// htmx would load the page anew.
document.addEventListener("htmx:before:history:restore", (event) => shown && event.preventDefault());

window.addEventListener("resize", () => shown?.state.changed());

document.addEventListener("stagetrace:part", (event) => {
  const go = by("go");
  if (go) location.replace(go.href);
  const picture = event.target.id === "body" && data("trace-picture");
  if (picture) {
    hatching();
    draw(picture);
  }
  if (event.target.id === "ranks" && shown) {
    rank(shown.state);
    shown.state.changed();
  }
});

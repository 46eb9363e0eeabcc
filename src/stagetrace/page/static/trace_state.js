// What is shown of a trace, and the part of it that is in the URL.

export const ms = (ns) => `${(ns / 1e6).toFixed(Math.abs(ns) < 1e6 ? 3 : 2)} ms`;

const SPAN = /^(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)$/;

// A range of the URL, in ms, as [start, end] in ns.
function interval(text) {
  const found = SPAN.exec(text || "");
  if (!found) return null;
  const [start, end] = [Number(found[1]) * 1e6, Number(found[2]) * 1e6];
  return start < end ? [start, end] : null;
}

const written = (range) => range && range.map((ns) => String(Number((ns / 1e6).toFixed(6)))).join("-");

// Rows as they come, each with the number of the row above it in the tree, of the row after its last descendant, and
// with its service.
function linked(rows) {
  const above = [];
  rows.forEach((row, number) => {
    while (above.length > row.depth) rows[above.pop()].after = number;
    row.number = number;
    row.parent = above.length ? above[above.length - 1] : -1;
    row.service ??= rows[row.parent]?.service;
    above.push(number);
  });
  while (above.length) rows[above.pop()].after = rows.length;
  return rows;
}

export class State {
  constructor(picture) {
    this.rows = linked(picture.rows);
    this.took = Math.max(picture.took, 1);
    this.byKey = new Map();
    for (const row of [...this.rows].reverse()) {
      this.byKey.set(row.key, row.number).set(row.key.split("-")[0], row.number);
    }
    this.folded = new Set();
    this.lit = new Set();
    this.litStall = null; // the key of a stack
    this.ranks = {};
    this.listeners = [];
    this.fromUrl();
  }

  fromUrl() {
    const params = new URLSearchParams(location.search);
    this.isFlame = params.get("view") === "flame";
    this.isCritical = params.get("critical") === "1";
    this.range = interval(params.get("range"));
    this.view = interval(params.get("zoom")) || [0, this.took];
    this.open = params.get("span");
    this.current = this.byKey.get(this.open) ?? Math.min(this.current ?? 0, this.rows.length - 1);
  }

  // Put what is chosen into the URL; `isStep`: the back button leads to what was before.
  toUrl(isStep) {
    const url = new URL(location.href);
    const isWhole = this.view[0] <= 0 && this.view[1] >= this.took;
    const values = {
      view: this.isFlame ? "flame" : null,
      critical: this.isCritical ? "1" : null,
      span: this.open,
      range: written(this.range),
      zoom: isWhole ? null : written(this.view),
    };
    for (const [name, value] of Object.entries(values)) {
      if (value) url.searchParams.set(name, value);
      else url.searchParams.delete(name);
    }
    if (url.href === location.href) return;
    if (isStep) history.pushState(null, "", url);
    else history.replaceState(null, "", url);
  }

  // Show all of it again, in the next frame.
  changed() {
    if (this.isAsked) return;
    this.isAsked = true;
    requestAnimationFrame(() => {
      this.isAsked = false;
      for (const listener of this.listeners) listener();
    });
  }

  // The numbers of the rows that are not folded away.
  visible() {
    const found = [];
    for (let number = 0; number < this.rows.length; ) {
      found.push(number);
      number = this.folded.has(number) ? this.rows[number].after : number + 1;
    }
    return found;
  }

  // Zoom by a factor around the middle, or move by a share of what is seen.
  zoom(factor, by = 0) {
    const [start, end] = this.view;
    const width = Math.min(Math.max((end - start) * factor, 1000), this.took);
    const middle = (start + end) / 2 + by * (end - start);
    const first = Math.min(Math.max(middle - width / 2, 0), this.took - width);
    this.view = [first, first + width];
    this.toUrl(false);
    this.changed();
  }

  zoomAll() {
    this.view = [0, this.took];
    this.toUrl(false);
    this.changed();
  }
}

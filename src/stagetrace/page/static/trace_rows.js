// The waterfall: a treegrid of which only the rows in sight are in the document.

import { bar, html, scale, stageClass, svg } from "./trace_bars.js";
import { marks, place } from "./trace_stalls.js";
import { ms } from "./trace_state.js";

const BEYOND = 12; // rows above and below those in sight

export class Rows {
  constructor(state, root, axis) {
    Object.assign(this, { state, root, axis, made: new Map() });
    this.body = html("div", "rows");
    this.body.setAttribute("role", "rowgroup");
    root.replaceChildren(this.body);
    root.setAttribute("aria-rowcount", state.rows.length);
    root.addEventListener("scroll", () => this.draw(), { passive: true });
  }

  // As the style sheet has it: rows are higher on a narrow screen.
  get height() {
    return parseFloat(getComputedStyle(this.root).getPropertyValue("--row")) || 24;
  }

  draw() {
    this.root.hidden = this.state.isFlame;
    if (this.state.isFlame) return;
    const { height } = this;
    const shown = this.state.visible();
    this.order = shown;
    this.body.style.height = `${shown.length * height}px`;
    const first = Math.max(Math.floor(this.root.scrollTop / height) - BEYOND, 0);
    const last = Math.min(Math.ceil((this.root.scrollTop + this.root.clientHeight) / height) + BEYOND, shown.length);
    const wanted = new Set(shown.slice(first, last));
    const holding = document.activeElement?.closest?.("[role=row]");
    for (const [number, element] of this.made) {
      if (wanted.has(number) || element === holding) continue;
      element.remove();
      this.made.delete(number);
    }
    const x = scale(this.state.view, this.axis.clientWidth);
    let before = null;
    for (let place = first; place < last; place += 1) {
      const number = shown[place];
      const element = this.made.get(number) || this.make(number);
      if (element.previousElementSibling !== before || !element.parentNode) this.body.insertBefore(element, before ? before.nextSibling : this.body.firstChild);
      element.style.transform = `translateY(${place * height}px)`;
      this.update(element, this.state.rows[number], x);
      before = element;
    }
  }

  make(number) {
    const row = this.state.rows[number];
    const element = html("div", "row");
    element.dataset.number = number;
    element.dataset.key = row.key;
    for (const [name, value] of Object.entries({ role: "row", "aria-level": row.depth + 1, "aria-rowindex": number + 1 })) {
      element.setAttribute(name, value);
    }
    element.append(this.name(row), this.bars(row), this.took(row));
    this.made.set(number, element);
    return element;
  }

  name(row) {
    const cell = html("div", "name");
    cell.setAttribute("role", "gridcell");
    cell.style.paddingInlineStart = `${Math.min(row.depth, 20) * 0.9}rem`;
    const hasChildren = row.after > row.number + 1;
    const twisty = html("span", hasChildren ? "twisty" : "twisty leaf");
    twisty.setAttribute("aria-hidden", "true");
    cell.append(twisty);
    if (row.stage) cell.append(html("span", `swatch ${stageClass(row.stage)}${row.kind === "detail" ? " light" : ""}`));
    const above = this.state.rows[row.parent];
    if (!above || above.service !== row.service) cell.append(html("span", "service", row.service));
    const label = html("span", "label", row.count ? `${row.name} ×${row.count}` : row.name);
    label.title = row.name;
    cell.append(label);
    if (row.error) cell.append(html("span", "mark bad", "error"));
    if (row.blamed) cell.append(html("span", "mark culprit", "culprit"));
    if (row.note) cell.append(html("span", "mark soft", row.note.includes("circle") ? "circle" : "parent missing"));
    cell.append(html("span", "chip"));
    return cell;
  }

  bars(row) {
    const cell = html("div", "bars");
    cell.setAttribute("role", "gridcell");
    const picture = svg("svg", { "aria-hidden": "true" });
    const words = [`from ${ms(row.at)}`];
    if (row.critical) words.push("on the critical path");
    for (const [phrase, took] of row.waits || []) words.push(`${row.most ? "at most " : ""}${ms(took * 1e6)} ${phrase}, unseen by spans`);
    if (row.note) words.push(row.note);
    cell.title = words.join("; ");
    cell.append(picture, html("span", "hidden-text", words.join("; ")), ...marks(row));
    return cell;
  }

  took(row) {
    const cell = html("div", "took-cell");
    cell.setAttribute("role", "gridcell");
    cell.append(html("span", "time", ms(row.took)));
    if (row.share !== undefined) cell.append(html("span", "share", `${(100 * row.share).toFixed(1)} %`));
    return cell;
  }

  update(element, row, x) {
    const { state } = this;
    const isCurrent = state.current === row.number;
    element.tabIndex = isCurrent ? 0 : -1;
    element.setAttribute("aria-selected", String(isCurrent));
    if (row.after > row.number + 1) element.setAttribute("aria-expanded", String(!state.folded.has(row.number)));
    element.classList.toggle("lit", state.lit.has(row.key));
    element.classList.toggle("dim", state.isCritical && !row.critical && row.depth > 0);
    element.classList.toggle("open", state.open === row.key);
    this.chip(element.querySelector(".chip"), state.ranks[row.key]);
    const picture = element.querySelector("svg");
    picture.replaceChildren(bar(row, x, 4, this.height > 30 ? 12 : 14));
    place(element, row, x, state.view, isCurrent, state.litStall);
  }

  chip(element, rank) {
    const [label, words] = rank || ["", ""];
    if (element.textContent === label) return;
    element.textContent = label;
    element.title = words;
    element.classList.toggle("high", Number(label.slice(1)) >= 95);
  }

  // Bring the current row into sight, and give it the focus if `takes`.
  reveal(takes) {
    const { height, state } = this;
    for (let above = state.rows[state.current].parent; above >= 0; above = state.rows[above].parent) state.folded.delete(above);
    const place = state.visible().indexOf(state.current);
    const top = place * height;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top + height > this.root.scrollTop + this.root.clientHeight) this.root.scrollTop = top + height - this.root.clientHeight;
    this.draw();
    if (takes && !state.isFlame) this.made.get(state.current)?.focus({ preventScroll: true });
  }
}

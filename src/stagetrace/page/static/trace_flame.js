// The flame graph: time to the right, the tree downwards; spans that overlap are beneath each other.

import { bar, scale, svg } from "./trace_bars.js";
import { ms } from "./trace_state.js";

const HEIGHT = 22;
const LANES = 400;

// The lane of each span: the first one beneath its parent's that is free from its begin on.
function lanes(rows) {
  const free = [];
  return rows.map((row) => {
    let lane = row.parent >= 0 ? rows[row.parent].lane + 1 : 0;
    while (lane < LANES && (free[lane] ?? -1) > row.at) lane += 1;
    free[lane] = Math.max(free[lane] ?? -1, row.at + row.took);
    row.lane = lane;
    return lane;
  });
}

export class Flames {
  constructor(state, root, say) {
    Object.assign(this, { state, root, say });
    this.depth = Math.min(Math.max(...lanes(state.rows)) + 1, LANES);
    this.picture = svg("svg", { role: "img", height: this.depth * HEIGHT });
    root.replaceChildren(this.picture);
  }

  draw() {
    const { state } = this;
    this.root.hidden = !state.isFlame;
    if (!state.isFlame) return;
    const width = this.root.clientWidth;
    const x = scale(state.view, width);
    const drawn = state.rows.filter((row) => this.isSeen(row, x, width));
    this.picture.setAttribute("width", width);
    this.picture.setAttribute("aria-label", `Flame graph of ${drawn.length} spans; the waterfall has them as a list`);
    this.picture.replaceChildren(...drawn.map((row) => this.span(row, x, width)));
    const rest = drawn.length < state.rows.length ? ": the others are narrower than half a pixel, out of sight or too deep" : "";
    this.say(`${drawn.length.toLocaleString("en")} of ${state.rows.length.toLocaleString("en")} spans drawn${rest}`);
  }

  isSeen(row, x, width) {
    const [left, right] = [x(row.at), x(row.at + row.took)];
    const isWide = right - left >= 0.5 || this.state.rows.length <= 500 || row.number === this.state.current;
    return isWide && right >= 0 && left <= width && row.lane < LANES;
  }

  span(row, x, width) {
    const { state } = this;
    const group = bar(row, x, row.lane * HEIGHT + 1, HEIGHT - 5);
    group.dataset.number = row.number;
    group.dataset.key = row.key;
    group.classList.toggle("lit", state.lit.has(row.key));
    group.classList.toggle("current", state.current === row.number);
    group.classList.toggle("dim", state.isCritical && !row.critical && row.depth > 0);
    const rank = state.ranks[row.key];
    group.append(svg("title", {}, `${row.service} ${row.name}, ${ms(row.took)}${rank ? `, ${rank[0]} of its kind` : ""}`));
    const left = Math.max(x(row.at), 0);
    const room = Math.min(x(row.at + row.took), width) - left - 8;
    const fits = Math.floor(room / 6.6);
    if (fits >= 3) {
      const name = row.name.length > fits ? `${row.name.slice(0, fits - 1)}…` : row.name;
      group.append(svg("text", { x: left + 4, y: row.lane * HEIGHT + 14 }, name));
    }
    return group;
  }
}

// Marks in the waterfall for stacks that were sampled while a request was late: buttons, each with its text.

import { html } from "./trace_bars.js";

// The marks of a row; `row.stalls` has [ns, key, whether it is the request's own stack, text] of each.
export function marks(row) {
  return (row.stalls || []).map(([, key, isOwn, text]) => {
    const mark = html("button", isOwn ? "stall" : "stall other");
    mark.type = "button";
    mark.dataset.mark = key;
    mark.title = text;
    mark.setAttribute("aria-label", text);
    return mark;
  });
}

// Put them where their times are; those out of sight, and of rows that are not the current one, take no focus.
export function place(element, row, x, [start, end], isCurrent, lit) {
  element.querySelectorAll("[data-mark]").forEach((mark, number) => {
    const [at, key] = row.stalls[number];
    mark.hidden = at < start || at > end;
    mark.style.left = `${x(at)}px`;
    mark.tabIndex = isCurrent ? 0 : -1;
    mark.classList.toggle("lit", key === lit);
  });
}

// Show the stack of a mark on its card.
export function show(key) {
  const stack = document.getElementById(`stall-${key}`);
  if (!stack) return;
  const whole = stack.querySelector("details");
  if (whole) whole.open = true;
  stack.focus({ preventScroll: true });
  stack.scrollIntoView({ block: "nearest" });
}

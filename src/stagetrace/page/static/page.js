// What all views share: keys, the theme, progress of parts, the zone of the browser.
// Views listen to the event `stagetrace:part`, sent to a part when its content is there.

const THEMES = ["", "light", "dark"];

function themeButton() {
  const button = document.getElementById("theme");
  const show = () => {
    const now = document.documentElement.dataset.theme || "";
    button.textContent = { "": "Theme: system", light: "Theme: light", dark: "Theme: dark" }[now];
  };
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    localStorage.setItem("stagetrace-theme", next);
    show();
    document.dispatchEvent(new Event("stagetrace:theme"));
  });
  show();
}

// A part that has been asked for: how long, once that is worth showing (the style sheet hides it for 300 ms).
function progress() {
  const began = performance.now();
  setInterval(() => {
    for (const one of document.querySelectorAll("[data-elapsed]")) {
      one.textContent = `${((performance.now() - began) / 1000).toFixed(0)} s`;
    }
  }, 500);
  document.addEventListener("htmx:before:request", (event) => {
    event.target.closest?.(".part")?.setAttribute("aria-busy", "true");
  });
  document.addEventListener("htmx:after:swap", (event) => {
    const part = event.target.closest?.(".part") || event.detail?.ctx?.target;
    if (!part) return;
    part.removeAttribute("aria-busy");
    part.dispatchEvent(new CustomEvent("stagetrace:part", { bubbles: true }));
  });
  document.addEventListener("htmx:error", (event) => notAsked(event.target.closest?.(".part")));
}

// A part that could not be asked for keeps what it shows, and says so until it can.
function notAsked(part) {
  if (!part) return;
  part.removeAttribute("aria-busy");
  part.querySelectorAll(":scope > .waiting, :scope > .not-asked").forEach((one) => one.remove());
  const note = document.createElement("p");
  note.className = "error not-asked";
  note.setAttribute("role", "alert");
  note.textContent = `The back end did not respond at ${new Date().toLocaleTimeString("en-GB")}. Press r to ask again.`;
  part.prepend(note);
}

// Forms leave out empty fields, so that URLs are short enough to be read.
function shortForms() {
  document.addEventListener("submit", (event) => {
    for (const field of event.target.querySelectorAll("input, select")) {
      if (!field.value) field.disabled = true;
    }
    setTimeout(() => event.target.querySelectorAll(":disabled").forEach((one) => (one.disabled = false)));
  });
}

function zones() {
  const select = document.querySelector("#filter select[name=tz]");
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (!select || !own || own === "UTC" || [...select.options].some((one) => one.value === own)) return;
  select.add(new Option(own, own));
}

// On a phone the views are in one line that scrolls, and the selection is folded into a button.
function fold() {
  document.querySelector("header nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  const button = document.getElementById("fold");
  button?.addEventListener("click", () => {
    button.setAttribute("aria-expanded", button.getAttribute("aria-expanded") !== "true");
  });
}

function search() {
  const field = document.querySelector("[data-search], #filter input[name=service]");
  if (field && !field.checkVisibility()) document.getElementById("fold")?.click();
  field?.focus();
}

// Rows: elements with `data-row`; the current one has aria-current, and the link in it is what Enter opens.
function rows() {
  return [...document.querySelectorAll("[data-row]")].filter((one) => one.checkVisibility());
}

function move(step) {
  const all = rows();
  if (!all.length) return;
  const now = all.findIndex((one) => one.getAttribute("aria-current") === "true");
  const next = all[Math.max(0, Math.min(all.length - 1, now < 0 ? 0 : now + step))];
  all[now]?.removeAttribute("aria-current");
  next.setAttribute("aria-current", "true");
  const link = next.matches("a") ? next : next.querySelector("a");
  (link || next).focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function keys() {
  const dialog = document.getElementById("keys");
  document.getElementById("help").addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    if (event.target.closest("input, select, textarea, [contenteditable]")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const views = document.querySelectorAll("header nav a");
    const actions = {
      "/": search,
      j: () => move(1),
      k: () => move(-1),
      r: () => document.body.dispatchEvent(new Event("refresh")),
      "?": () => dialog.showModal(),
    };
    const action = actions[event.key] || (/^[1-9]$/.test(event.key) && (() => views[event.key - 1]?.click()));
    if (action) {
      event.preventDefault();
      action();
    }
  });
}

// A button with `data-copy="ID"` copies the text of that element.
function copies() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const element = document.getElementById(button.dataset.copy);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(element.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(element); // browsers keep the clipboard from plain http beyond this machine
      button.textContent = "Selected: copy it with your keys";
    }
    setTimeout(() => (button.textContent = label), 1500);
  });
}

// The data of a chart, which a part has in `<script type="application/json" id="ID">`.
export function data(id) {
  const found = document.getElementById(id);
  return found ? JSON.parse(found.textContent) : null;
}

// A colour of the style sheet: `colour("inference")` is the value of --inference.
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name.replace(/[._]/g, "-")}`).trim();
}

themeButton();
progress();
shortForms();
zones();
fold();
keys();
copies();

// The live tail: a stream of requests that go on top of the table. Paused, they wait; beyond a number the oldest go.

const part = document.getElementById("newest");
const most = Number(part.dataset.most);
const state = document.getElementById("state");
const pause = document.getElementById("pause");
let waiting = []; // rows that have arrived and are not shown, the oldest first
let arrived = 0;
let missed = 0;
let connected = 0; // how many times
let stream = null;

function isPaused() {
  return pause.getAttribute("aria-pressed") === "true";
}

function show(element, text) {
  element.hidden = !text;
  element.textContent = text;
}

function number(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
}

function sayState(text, is) {
  state.textContent = text;
  state.className = is;
}

function rowOf(request, heads) {
  const row = document.createElement("tr");
  row.dataset.row = "";
  row.dataset.id = request.id;
  row.className = request.breached ? "is-breach is-new" : "is-new";
  request.cells.forEach((text, place) => {
    const cell = row.insertCell();
    cell.className = heads[place].className;
    if (place) {
      cell.textContent = text;
    } else {
      const link = cell.appendChild(document.createElement("a"));
      link.href = request.url;
      link.textContent = text;
    }
  });
  return row;
}

function flush() {
  const body = document.getElementById("rows");
  if (body && !isPaused()) {
    const known = new Set([...body.rows].map((row) => row.dataset.id));
    const heads = body.parentElement.tHead.rows[0].cells;
    for (const request of waiting) {
      if (!known.has(request.id)) body.prepend(rowOf(request, heads));
      known.add(request.id);
    }
    waiting = [];
    while (body.rows.length > most) body.lastElementChild.remove();
    document.getElementById("none").hidden = body.rows.length > 0;
  }
  const held = isPaused() ? `, ${number(waiting.length, "request")} held back` : "";
  const kept = body?.rows.length === most ? `; the newest ${most} are kept` : "";
  document.getElementById("arrived").textContent = `${number(arrived, "request")} arrived${held}${kept}`;
}

function take(event) {
  const { rows, missed: more } = JSON.parse(event.data);
  arrived += rows.length + more;
  missed += more;
  waiting.push(...rows);
  if (waiting.length > most) missed += waiting.splice(0, waiting.length - most).length;
  const why = `more came than this tab, or the connection to it, takes: ${most} wait at most`;
  show(document.getElementById("missed"), missed ? `${number(missed, "request")} not shown: ${why}.` : "");
  flush();
}

function begin(event) {
  const { problem, polled_s: polled } = JSON.parse(event.data);
  show(document.getElementById("problem"), problem || "");
  if (problem) {
    sayState("The store cannot be followed; trying again", "is-off");
    return;
  }
  connected += 1;
  const how = polled
    ? `Following: this store does not report what is new, and is asked every ${polled} s for the last two minutes`
    : "Following";
  const again = connected > 1 ? `; connected again at ${new Date().toLocaleTimeString()}, in between only the newest are here` : "";
  sayState(how + again, "is-on");
  document.body.dispatchEvent(new Event("follow"));
}

function connect() {
  stream = new EventSource(part.dataset.stream);
  stream.addEventListener("state", begin);
  stream.addEventListener("requests", take);
  stream.addEventListener("error", () => {
    if (!connected) document.body.dispatchEvent(new Event("follow"));
    sayState("Not connected; trying again", "is-off");
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
}

// The newest ones, asked for once the stream is there so that none is missed: rows that were shown before stay below.
let before = [];
document.addEventListener("htmx:before:swap", () => {
  before = [...(document.getElementById("rows")?.rows || [])];
});
part.addEventListener("stagetrace:part", () => {
  const body = document.getElementById("rows");
  if (!body) return;
  const fresh = new Set([...body.rows].map((row) => row.dataset.id));
  body.append(...before.filter((row) => !fresh.has(row.dataset.id)));
  before = [];
  flush();
});

pause.addEventListener("click", () => {
  pause.setAttribute("aria-pressed", !isPaused());
  pause.textContent = isPaused() ? "Resume" : "Pause";
  flush();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("input, select, textarea, button, summary, dialog")) return;
  event.preventDefault();
  pause.click();
});
// Not before htmx listens: the event "follow" would be lost, and the part wait for ever.
part.addEventListener("htmx:after:init", connect, { once: true });

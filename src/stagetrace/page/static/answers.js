// The cards ask side by side, a few at a time, since a browser has few connections, and the quickest answers first: those that ask by
// themselves. When one has its answer, or none, the next one begins. Cards that show their last answer are asked for anew after all others.

const cards = [...document.querySelectorAll(".cards .part")].sort((a, b) => a.dataset.order - b.dataset.order);
const others = cards.filter((card) => card.getAttribute("hx-trigger") === "ask");
let waiting = [...others];

for (const card of cards) {
  card.addEventListener("htmx:finally:request", () => {
    const old = card.querySelector(".anew:not([data-waits])");
    if (old) {
      old.dataset.waits = "";
      waiting.push(old);
    }
    waiting.shift()?.dispatchEvent(new Event("ask"));
  });
}
document.body.addEventListener("refresh", () => (waiting = [...others]), { capture: true });

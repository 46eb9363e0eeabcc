// The cards ask one after the other: when one has its answer, or none, the next one begins.

const cards = [...document.querySelectorAll(".cards .part")];

cards.forEach((card, place) => {
  card.addEventListener("htmx:finally:request", () => cards[place + 1]?.dispatchEvent(new Event("ask")));
});

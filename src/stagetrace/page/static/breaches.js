// The list of breaches: facets unfolded where there is room, the keyboard at the end of what is loaded, copying.

const wide = matchMedia("(min-width: 60rem)");

function fold() {
  document.getElementById("unfold").open = wide.matches;
}

// `j` on the last row asks for more, where scrolling has not done so.
function moreAtTheEnd(event) {
  if (event.key !== "j" || event.target.closest("input, select, textarea")) return;
  const more = document.querySelector("#list .more");
  const last = [...document.querySelectorAll("#list [data-row]")].at(-1);
  if (more && last?.getAttribute("aria-current") === "true") window.htmx.trigger(more, "more");
}

async function copy(event) {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy);
  const copied = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(text.textContent);
    copied.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(text);
    copied.textContent = "selected: press Ctrl-C";
  }
}

fold();
wide.addEventListener("change", fold);
document.addEventListener("keydown", moreAtTheEnd);
document.addEventListener("click", copy);

// What if: a slider that is moved gives its option to the question, with the value as its text; one where it began gives none.
// The address of the page has them, too.

const form = document.getElementById("sliders");
const sliders = [...form.querySelectorAll("input[type=range]")];
const names = new Set(sliders.map((slider) => slider.dataset.name));

function take(slider) {
  const isMoved = slider.value !== slider.dataset.now;
  const value = Number(slider.value);
  const text = slider.dataset.text.replace("{}", slider.dataset.name === "stage" && value > 0 ? `+${value}` : value);
  slider.parentElement.querySelector("output").value = isMoved ? text : "as it is";
  slider.parentElement.querySelector("input[type=hidden]")?.remove();
  if (!isMoved) return;
  const hidden = Object.assign(document.createElement("input"), { type: "hidden", name: slider.dataset.name, value: text });
  slider.after(hidden);
}

function address() {
  const url = new URL(location);
  names.forEach((name) => url.searchParams.delete(name));
  new FormData(form).forEach((value, name) => url.searchParams.append(name, value));
  history.replaceState(null, "", url);
}

sliders.forEach((slider) => slider.addEventListener("input", () => take(slider)));
form.addEventListener("change", address);
form.addEventListener("reset", () => setTimeout(() => {
  sliders.forEach(take);
  form.dispatchEvent(new Event("change"));
}));

// Those of the address, as far as a slider has such a value.
for (const [name, text] of new URL(location).searchParams) {
  for (const slider of sliders.filter((one) => one.dataset.name === name)) {
    const [before, after] = slider.dataset.text.split("{}");
    const value = text.slice(before.length, text.length - after.length);
    if (before + value + after === text && value !== "" && !Number.isNaN(Number(value))) slider.value = value;
  }
}
sliders.forEach(take);

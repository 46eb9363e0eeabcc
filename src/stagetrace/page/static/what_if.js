// What if: a slider that is moved gives its option to the question, with the value as its text; one where it began gives none.

const form = document.getElementById("sliders");

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

const sliders = [...form.querySelectorAll("input[type=range]")];
sliders.forEach((slider) => slider.addEventListener("input", () => take(slider)));
form.addEventListener("reset", () => setTimeout(() => {
  sliders.forEach(take);
  form.dispatchEvent(new Event("change"));
}));
sliders.forEach(take);

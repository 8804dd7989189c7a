"use strict";
for (const figure of document.querySelectorAll(".frames")) {
  const items = figure.querySelectorAll(".strip > li");
  const slider = figure.querySelector("input[type=range]");
  const buttons = figure.querySelectorAll(".choices button");
  let chosen = 0;
  const show = (place) => {
    items.forEach((item, k) => item.classList.toggle("current", k === place));
    if (slider) slider.setAttribute("aria-valuetext", items[place].dataset.label);
  };
  const choose = (place) => {
    chosen = place;
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === place)));
    show(place);
  };
  if (slider) {
    slider.addEventListener("input", () => show(Number(slider.value)));
    show(Number(slider.value)); // a browser may restore the slider of an earlier visit
  }
  buttons.forEach((button, place) => {
    button.addEventListener("click", () => choose(place));
    if (figure.dataset.control === "words") {
      button.addEventListener("pointerenter", () => show(place));
      button.addEventListener("focus", () => show(place));
      button.addEventListener("pointerleave", () => show(chosen));
      button.addEventListener("blur", () => show(chosen));
    }
  });
}

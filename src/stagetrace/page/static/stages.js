// Stages: releases and marks in the picture over time.

import { drawMoments } from "./moments.js";

document.addEventListener("stagetrace:part", () => {
  const picture = document.querySelector(".course");
  if (!picture || picture.querySelector(".moments")) return;
  const { from, to } = picture.dataset;
  drawMoments(picture, document.querySelector("#course .moments-list"), Number(from), Number(to));
});

// What the model names: bars with probabilities, the set of a coverage, and the mark of images unlike those of training.

import { make, percent } from "./dom.js";

/** Fill the part of a pane. `model` are the model's facts, `prediction` the server's. */
export function showPredictions(element, model, prediction) {
  element.querySelector(".bars").replaceChildren(...prediction.top.map(bar));
  const marks = [];
  if (prediction.outlier) marks.push(make("span", { className: "mark odd" }, "Unlike the training images"));
  else if (prediction.outlier === false) marks.push(make("span", { className: "mark fine" }, "Like the training images"));
  if (model.multi_label) marks.push(make("span", { className: "mark" }, "Several labels, each with its own probability"));
  else marks.push(make("span", { className: "mark" }, model.calibrated ? "Calibrated probabilities" : "Not calibrated"));
  element.querySelector(".marks").replaceChildren(...marks);
  showSet(element.querySelector(".set"), prediction);
}

function bar({ label, probability }) {
  const fill = make("span", { className: "fill", "aria-hidden": "true" });
  fill.style.width = `${100 * probability}%`;
  return make(
    "li",
    {},
    make("span", { className: "label" }, label),
    make("span", { className: "value" }, percent(probability)),
    make("span", { className: "track", "aria-hidden": "true" }, fill),
  );
}

function showSet(element, { classes, coverage }) {
  if (!classes) {
    element.replaceChildren();
    return;
  }
  const words = `With ${percent(coverage)} coverage it is `;
  const names = classes.map((name) => make("span", { className: "chip" }, name));
  element.replaceChildren(...(names.length ? [words, ...between(names, " or ")] : [`No class has ${percent(coverage)} coverage.`]));
  element.title = "For images like those of training, this share of the sets holds the right class.";
}

function between(items, joint) {
  return items.flatMap((item, place) => (place ? [joint, item] : [item]));
}

// What the model names: bars with probabilities, the set of a coverage, and the mark of images unlike those of training.

import { make, percent } from "./dom.js";

const COVERAGES = [0.8, 0.9, 0.95, 0.99];

/** Fill the part of a pane. `model` are the model's facts, `prediction` the server's; `choose(coverage)` asks for another. */
export function showPredictions(element, model, prediction, { coverage, choose }) {
  element.querySelector(".bars").replaceChildren(...prediction.top.map(bar));
  const marks = [];
  if (prediction.outlier) marks.push(make("span", { className: "mark odd" }, "Unlike the training images"));
  else if (prediction.outlier === false) marks.push(make("span", { className: "mark fine" }, "Like the training images"));
  if (model.task === "multi-label") marks.push(make("span", { className: "mark" }, "Several labels, each with its own probability"));
  else marks.push(make("span", { className: "mark" }, model.calibration ? "Calibrated probabilities" : "Not calibrated"));
  element.querySelector(".marks").replaceChildren(...marks);
  showSet(element.querySelector(".set"), prediction.classes, { coverage, choose });
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

function showSet(element, classes, { coverage, choose }) {
  element.hidden = !classes;
  if (!classes) return;
  const options = COVERAGES.map((each) => make("option", { value: each, selected: each === coverage }, percent(each)));
  const select = make("select", { "aria-label": "Coverage", onchange: () => choose(Number(select.value)) }, ...options);
  const names = classes.map((name) => make("span", { className: "chip" }, name));
  const start = names.length === 1 ? " it is " : " it is one of ";
  const end = names.length ? [start, ...between(names, " ")] : [" no class is likely enough."];
  element.replaceChildren("With a coverage of ", select, ...end);
  element.title = "For images like those of training, this share of the sets holds the right class.";
}

function between(items, joint) {
  return items.flatMap((item, place) => (place ? [joint, item] : [item]));
}

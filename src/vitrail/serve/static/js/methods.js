// Maps through the whole model for one class, each with its faithfulness beside random orders.

import { scaleOf, signedScale } from "./colors.js";
import { capital, make } from "./dom.js";
import { drawPicture } from "./picture.js";
import { MEAN } from "./attention.js";

const HOVER = "attention"; // the method that hovering shows
const SIDE_PX = 440;

export class Methods {
  /** `ask(method, target)` returns a map of the server's. */
  constructor(element, { ask, failed }) {
    this.element = element;
    this.ask = ask;
    this.failed = failed;
    this.maps = element.querySelector(".maps");
    this.target = element.querySelector(".target");
    this.button = element.querySelector(".explain");
    this.button.addEventListener("click", () => this.run());
    this.target.addEventListener("change", () => this.maps.hasChildNodes() && this.run());
  }

  /** Prepare for an image: its classes, the likely ones first, and the methods of its model. */
  show(model, prediction, source) {
    this.current = null;
    this.button.disabled = false;
    this.methods = model.methods.filter(({ name, scored }) => scored && name !== HOVER);
    this.source = source;
    this.maps.replaceChildren();
    const likely = prediction.top.map(({ label }) => label);
    const others = model.classes.filter((name) => !likely.includes(name));
    this.target.replaceChildren(...[...likely, ...others].map((name) => make("option", { value: name }, name)));
    this.element.hidden = !this.methods.length || !source;
  }

  /** Ask for the maps of all methods, one after the other: the server explains in turn anyway. */
  async run(target = this.target.value) {
    this.target.value = target;
    const run = (this.current = {});
    const figures = this.methods.map((method) => this.#figure(method));
    this.maps.replaceChildren(...figures);
    this.button.disabled = true;
    try {
      for (const [place, method] of this.methods.entries()) {
        const knows = method.options.includes("target");
        const answer = await this.ask(method.name, knows ? target : null);
        if (this.current !== run) return;
        this.#fill(figures[place], method, answer);
      }
    } catch (failure) {
      if (this.current === run) this.maps.replaceChildren();
      this.failed(failure);
    } finally {
      if (this.current === run) this.button.disabled = false;
    }
  }

  #figure(method) {
    const canvas = make("canvas", { role: "img", "aria-label": `${titleOf(method)}: on its way` });
    canvas.width = SIDE_PX;
    canvas.height = Math.round((SIDE_PX * this.source.height) / this.source.width);
    drawPicture(canvas, { source: this.source, grid: [1, 1], values: null, look: "bare", query: null });
    return make(
      "figure",
      { className: "waiting" },
      canvas,
      make("figcaption", {}, make("b", {}, titleOf(method)), make("span", { className: "shows" }, method.shows), make("span", { className: "score" }, " ")),
    );
  }

  #fill(figure, method, { map, signed, scores, target }) {
    const rows = map.length;
    const values = map.flat();
    const most = Math.max(...values.map(Math.abs)) || 1;
    const canvas = figure.querySelector("canvas");
    drawPicture(canvas, {
      source: this.source,
      grid: [rows, map[0].length],
      values: signed ? values.map((value) => (value / most + 1) / 2) : values,
      most: signed ? 1 : most,
      colors: signed ? signedScale() : scaleOf(MEAN),
      look: signed ? "signed" : "lit",
      query: null,
    });
    canvas.setAttribute("aria-label", `${titleOf(method)} for ${target}`);
    figure.classList.remove("waiting");
    if (scores) figure.querySelector(".score").replaceChildren(gauge(scores), words(scores, target));
  }
}

function titleOf({ name }) {
  const words = name.replaceAll("_", " ");
  return words === "gradcam" ? "Grad-CAM" : capital(words);
}

/** A line from -1 to 1: the gap of the map, and that of random orders. */
function gauge({ gap, random }) {
  const at = (value) => `${50 + 50 * Math.min(1, Math.max(-1, value))}%`;
  const [chance, mark] = [make("i", { className: "chance" }), make("i", { className: "gap" })];
  chance.style.left = at(random);
  mark.style.left = at(gap);
  return make("span", { className: "gauge", "aria-hidden": "true" }, chance, mark);
}

function words({ gap, random }, target) {
  const [own, chance] = [gap, random].map((value) => value.toFixed(2).replace("-", "−"));
  return `Faithfulness for ${target}: ${own}, random orders: ${chance}`;
}

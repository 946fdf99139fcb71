// The bar above the panes: layer, head, what looks, the look; and playing through the layers.

import { MEAN } from "./attention.js";
import { make } from "./dom.js";

const STEP_MS = 650;
const SLOW_STEP_MS = 1400; // for people who prefer reduced motion

export class Controls {
  constructor(element, view) {
    this.element = element;
    this.view = view;
    this.slider = element.querySelector(".layer input");
    this.head = element.querySelector(".head select");
    this.cls = element.querySelector(".cls");
    this.play = element.querySelector(".play");
    this.clock = 0;
    this.slider.addEventListener("input", () => view.set({ layer: Number(this.slider.value) }));
    this.head.addEventListener("change", () => view.set({ head: Number(this.head.value) }));
    this.cls.addEventListener("click", () => view.pin(null));
    this.play.addEventListener("click", () => this.toggle());
    for (const look of element.querySelectorAll("[name=look]")) {
      look.addEventListener("change", () => view.set({ look: look.value }));
    }
    view.onChange(() => this.draw());
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Offer the layers and heads of the largest model that is shown; none where no model has attention. */
  show(attentions) {
    this.element.hidden = !attentions.length;
    if (!attentions.length) return this.stop();
    this.depth = Math.max(...attentions.map(({ header }) => header.depth));
    this.heads = Math.max(...attentions.map(({ header }) => header.heads));
    this.slider.max = this.depth - 1;
    const names = Array.from({ length: this.heads }, (_, head) => make("option", { value: head }, String(head)));
    this.head.replaceChildren(make("option", { value: MEAN }, "mean"), ...names);
    this.cls.textContent = attentions.every(({ header }) => header.class_token) ? "Class token" : "Head's view";
    this.cls.title = "Look from what the head of the model reads, instead of from a patch";
    const { layer, head } = this.view.state;
    this.view.set({ layer: Math.min(layer, this.depth - 1), head: head < this.heads ? head : MEAN });
    this.draw();
  }

  draw() {
    const { layer, head, place, look } = this.view.state;
    this.slider.value = layer;
    this.element.querySelector(".layer output").textContent = String(layer);
    this.head.value = head;
    this.cls.setAttribute("aria-pressed", String(place === null));
    this.element.querySelector(`[name=look][value=${look}]`).checked = true;
  }

  toggle() {
    if (this.clock) this.stop();
    else this.#start();
  }

  stop() {
    clearInterval(this.clock);
    this.clock = 0;
    this.#label();
  }

  #start() {
    const slow = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const step = () => this.view.set({ layer: (this.view.state.layer + 1) % this.depth });
    this.clock = setInterval(step, slow ? SLOW_STEP_MS : STEP_MS);
    step();
    this.#label();
  }

  #label() {
    this.play.firstElementChild.textContent = this.clock ? "❚❚" : "▶";
    this.play.setAttribute("aria-label", this.clock ? "Stop" : "Play through the layers");
  }

  #key(event) {
    const typing = event.target.closest?.("input:not([type=range]):not([type=radio]), select, textarea, dialog");
    if (typing || this.element.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const { layer, head } = this.view.state;
    if (event.key === "[") this.view.set({ layer: Math.max(0, layer - 1) });
    else if (event.key === "]") this.view.set({ layer: Math.min(this.depth - 1, layer + 1) });
    else if (event.key === ",") this.view.set({ head: Math.max(MEAN, head - 1) });
    else if (event.key === ".") this.view.set({ head: Math.min(this.heads - 1, head + 1) });
    else if (event.key === "p") this.toggle();
  }
}

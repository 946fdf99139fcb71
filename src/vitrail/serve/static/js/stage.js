// The picture of a pane: hover, touch and arrow keys choose the patch that looks; the map is drawn at once.

import { MEAN, READING } from "./attention.js";
import { scaleOf } from "./colors.js";
import { announce, capital, percent } from "./dom.js";
import { drawPicture, drawScale } from "./picture.js";
import { centreOf, patchAt } from "./view.js";

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class Stage {
  /** `element` is the pane's ".stage". */
  constructor(element, view) {
    this.element = element;
    this.view = view;
    this.canvas = element.querySelector(".picture");
    this.legend = element.querySelector(".scale");
    this.source = null;
    this.attention = null;
    new ResizeObserver(() => this.#fit()).observe(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.#hover(event));
    this.canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") view.set({ place: view.state.pinned });
    });
    this.canvas.addEventListener("pointerdown", (event) => this.#press(event));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show another image. `attention` is null for a model without. */
  show(source, attention) {
    this.source = source;
    this.attention = attention;
    this.canvas.parentElement.style.aspectRatio = `${source.width} / ${source.height}`;
    this.canvas.classList.toggle("hovers", Boolean(attention?.hovers));
    this.#fit();
  }

  /** Layer and head of the view as far as this model has them. */
  get at() {
    const { layer, head } = this.view.state;
    const { depth, heads } = this.attention.header;
    return { layer: Math.min(layer, depth - 1), head: head < heads ? head : MEAN };
  }

  /** The number of the patch that looks, or null. */
  get query() {
    const { place } = this.view.state;
    return place && this.attention?.hovers ? patchAt(place, this.attention.grid) : null;
  }

  draw() {
    if (!this.source) return;
    const seen = this.#paint(this.canvas);
    if (this.attention) this.#words(seen);
  }

  /** Draw the picture into a part of another canvas. */
  drawOn(context, x, y, width, height) {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    this.#paint(canvas);
    context.drawImage(canvas, x, y);
  }

  /** Paint a canvas, and return what is seen: null without attention, or where the layer is not there yet. */
  #paint(canvas) {
    const { source, attention, query } = this;
    const { look } = this.view.state;
    if (!attention) {
      drawPicture(canvas, { source, grid: [1, 1], values: null, look, query: null });
      return null;
    }
    const { layer, head } = this.at;
    const seen = attention.look(layer, head, query === null ? READING : attention.prefix + query);
    const { patches = null, most = 1 } = seen ?? {};
    drawPicture(canvas, { source, grid: attention.grid, values: patches, most, colors: scaleOf(head), look, query });
    return seen;
  }

  #words(seen) {
    const { layer, head } = this.at;
    const { query } = this;
    const reads = this.element.querySelector(".reads");
    this.legend.hidden = !seen;
    if (!seen) {
      reads.textContent = `Layer ${layer} is on its way.`;
      return;
    }
    const rest = seen.prefix >= 0.005 ? `; ${percent(seen.prefix)} goes to ${this.#prefixName()}` : "";
    reads.textContent = `${this.#looker(query)} ${this.#name(seen.best)}, with ${percent(seen.most)}${rest}.`;
    const heads = head === MEAN ? "all heads" : `head ${head}`;
    this.canvas.setAttribute("aria-label", `Picture, layer ${layer}, ${heads}. ${reads.textContent} Arrow keys choose the patch.`);
    announce(reads.textContent);
    this.#drawLegend(seen, head);
  }

  #looker(query) {
    if (query !== null) return `${capital(this.#name(query))} looks most at`;
    return this.attention.header.class_token ? "The class token looks most at" : "The head, through all that it reads, looks most at";
  }

  #prefixName() {
    const { prefix, class_token } = this.attention.header;
    if (class_token && prefix === 1) return "the class token";
    return class_token ? "the class token and registers" : "registers";
  }

  #name(patch) {
    const columns = this.attention.grid[1];
    return `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  }

  #drawLegend(seen, head) {
    drawScale(this.legend.querySelector("canvas"), scaleOf(head));
    const even = 1 / this.attention.header.tokens / seen.most;
    const mark = this.legend.querySelector(".even");
    mark.hidden = even > 0.97;
    mark.style.left = `${100 * even}%`;
    mark.title = "what every token would get if attention were even";
    this.legend.querySelector(".high").textContent = percent(seen.most);
  }

  #fit() {
    const { width, height } = this.canvas.getBoundingClientRect();
    if (!width || !this.source) return;
    const dense = Math.min(2, window.devicePixelRatio || 1);
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    this.draw();
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    const clamp = (value) => Math.min(0.999999, Math.max(0, value));
    return { x: clamp((event.clientX - box.left) / box.width), y: clamp((event.clientY - box.top) / box.height) };
  }

  #centre(place) {
    return centreOf(patchAt(place, this.attention.grid), this.attention.grid);
  }

  #hover(event) {
    if (!this.attention?.hovers) return;
    const place = this.#centre(this.#place(event));
    if (event.pointerType === "mouse") this.view.set({ place });
    else this.view.pin(place);
  }

  #press(event) {
    if (!this.attention?.hovers || event.button > 0) return;
    const place = this.#centre(this.#place(event));
    const { pinned } = this.view.state;
    const again = pinned && pinned.x === place.x && pinned.y === place.y;
    this.view.set({ pinned: again ? null : place, place });
  }

  #key(event) {
    if (!this.attention?.hovers || event.ctrlKey || event.metaKey || event.altKey) return;
    const [rows, columns] = this.attention.grid;
    if (event.key === "Home") {
      this.view.pin(null);
    } else if (MOVES[event.key]) {
      const [down, across] = MOVES[event.key];
      const from = this.query ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
      const row = Math.min(rows - 1, Math.max(0, Math.floor(from / columns) + (this.query === null ? 0 : down)));
      const column = Math.min(columns - 1, Math.max(0, (from % columns) + (this.query === null ? 0 : across)));
      this.view.pin(centreOf(row * columns + column, this.attention.grid));
    } else {
      return;
    }
    event.preventDefault();
  }
}

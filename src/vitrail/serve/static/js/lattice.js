// The window: a small pane for every layer (across) and head (down), all looking from the same place.

import { MEAN, READING } from "./attention.js";
import { glassOf } from "./colors.js";
import { make } from "./dom.js";
import { drawThumbnail } from "./picture.js";

const SLICE_MS = 10; // of the 16 of a frame
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Lattice {
  constructor(element, view) {
    this.element = element;
    this.view = view;
    this.cells = [];
    this.frame = 0;
    element.addEventListener("keydown", (event) => this.#key(event));
    element.addEventListener("click", (event) => {
      const cell = event.target.closest("button[data-layer]");
      if (cell) this.view.set({ layer: Number(cell.dataset.layer), head: Number(cell.dataset.head) });
    });
  }

  /** Build the cells for an attention, or none. */
  show(attention) {
    cancelAnimationFrame(this.frame);
    this.attention = attention;
    this.cells = [];
    this.element.replaceChildren();
    if (!attention) return;
    const { depth, heads } = attention.header;
    const [rows, columns] = attention.grid;
    const table = make("div", { className: "grid", role: "grid", "aria-label": "Attention of all layers and heads" });
    table.style.setProperty("--layers", depth);
    table.style.setProperty("--heads", heads + 1);
    table.append(this.#header(depth));
    for (let head = MEAN; head < heads; head++) {
      const label = head === MEAN ? "all" : String(head);
      const name = make("span", { role: "rowheader", className: "label" }, make("i", { "aria-hidden": "true" }), label);
      name.firstChild.style.backgroundColor = glassOf(head);
      const row = make("div", { role: "row", className: "line" }, name);
      for (let layer = 0; layer < depth; layer++) {
        const canvas = make("canvas", { width: columns, height: rows, "aria-hidden": "true" });
        const named = `layer ${layer}, ${head === MEAN ? "all heads" : `head ${head}`}`;
        const button = make("button", { type: "button", tabIndex: -1, title: named, "aria-label": named }, canvas);
        Object.assign(button.dataset, { layer, head });
        this.cells.push({ layer, head, button, canvas });
        row.append(make("div", { role: "gridcell" }, button));
      }
      table.append(row);
    }
    this.element.append(table);
  }

  #header(depth) {
    const row = make("div", { role: "row", className: "line names" }, make("span", { role: "columnheader", className: "corner" }, "layer"));
    const every = depth > 16 ? 2 : 1;
    for (let layer = 0; layer < depth; layer++) {
      row.append(make("span", { role: "columnheader", "aria-label": `layer ${layer}` }, layer % every ? "" : String(layer)));
    }
    return row;
  }

  /** Draw all cells for a query (the number of a patch, or null), and mark the chosen one. */
  draw({ layer, head }, query) {
    if (!this.attention) return;
    for (const cell of this.cells) {
      const chosen = cell.layer === layer && cell.head === head;
      if (chosen === cell.chosen) continue;
      cell.chosen = chosen;
      cell.button.setAttribute("aria-pressed", String(chosen));
      cell.button.tabIndex = chosen ? 0 : -1;
    }
    const token = query === null ? READING : this.attention.prefix + query;
    cancelAnimationFrame(this.frame);
    this.#paint(this.cells, token, 0);
  }

  /** Draw cells from one on; of a large model as many as a frame has time for, and the others in the next. */
  #paint(cells, token, from) {
    const end = performance.now() + SLICE_MS;
    let place = from;
    for (; place < cells.length && performance.now() < end; place++) {
      const { layer, head, button, canvas } = cells[place];
      const seen = this.attention.glance(layer, head, token);
      button.classList.toggle("absent", !seen);
      if (seen) drawThumbnail(canvas, seen.patches, seen.most, head);
    }
    if (place < cells.length) this.frame = requestAnimationFrame(() => this.#paint(cells, token, place));
  }

  #key(event) {
    const move = MOVES[event.key];
    const from = event.target.closest("button[data-layer]");
    if (!move || !from) return;
    event.preventDefault();
    const { depth, heads } = this.attention.header;
    const layer = Math.min(depth - 1, Math.max(0, Number(from.dataset.layer) + move[0]));
    const head = Math.min(heads - 1, Math.max(MEAN, Number(from.dataset.head) + move[1]));
    this.view.set({ layer, head });
    this.cells.find((cell) => cell.layer === layer && cell.head === head).button.focus();
  }
}

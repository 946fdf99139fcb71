// What is shown: layer, head, the place that looks, the look. Parts of the page subscribe, and draw what has changed.

import { MEAN } from "./attention.js";

export const LOOKS = ["lit", "glass", "bare"];

export class View extends EventTarget {
  /** Layer, head, look; `pinned` is the place that stays, `place` what is shown now (with a hover). Places are shares {x, y}. */
  state = { layer: 0, head: MEAN, pinned: null, place: null, look: "lit" };

  /** Change fields, and tell subscribers at the next frame at the latest, once. */
  set(changes) {
    const changed = Object.entries(changes).filter(([name, value]) => !same(this.state[name], value));
    if (!changed.length) return;
    Object.assign(this.state, Object.fromEntries(changed));
    this.dispatchEvent(new CustomEvent("change", { detail: new Set(changed.map(([name]) => name)) }));
  }

  /** Keep a place: null is what the head reads. */
  pin(place) {
    this.set({ pinned: place, place });
  }

  onChange(listener) {
    this.addEventListener("change", (event) => listener(event.detail));
  }
}

function same(a, b) {
  return a === b || (typeof a === "object" && a !== null && b !== null && a.x === b.x && a.y === b.y);
}

/** The patch that holds a place, as its number in a grid. */
export function patchAt(place, [rows, columns]) {
  const row = Math.min(rows - 1, Math.floor(place.y * rows));
  return row * columns + Math.min(columns - 1, Math.floor(place.x * columns));
}

/** The centre of a patch, as a place. */
export function centreOf(patch, [rows, columns]) {
  return { x: ((patch % columns) + 0.5) / columns, y: (Math.floor(patch / columns) + 0.5) / rows };
}

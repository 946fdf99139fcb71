// The view as a link: what the fragment of the address holds. Images of one's own are not in it, only samples are.

import { MEAN } from "./attention.js";
import { LOOKS } from "./view.js";

/** Write the view and the panes as a fragment. */
export function toFragment({ layer, head, pinned, look }, panes) {
  const words = new URLSearchParams();
  words.set("layer", layer);
  if (head !== MEAN) words.set("head", head);
  if (pinned) words.set("at", `${pinned.x.toFixed(4)},${pinned.y.toFixed(4)}`);
  if (look !== LOOKS[0]) words.set("look", look);
  for (const pane of panes) {
    words.append("model", pane.model);
    words.append("sample", pane.sample ?? "");
    words.append("class", pane.target ?? "");
  }
  return `#${words}`;
}

/** Read a fragment: only what it holds and what makes sense. */
export function fromFragment(fragment) {
  const words = new URLSearchParams(fragment.replace(/^#/, ""));
  const view = {};
  const layer = whole(words.get("layer"));
  if (layer !== null) view.layer = layer;
  const head = whole(words.get("head"));
  if (head !== null) view.head = head;
  const [x, y] = (words.get("at") ?? "").split(",").map(Number);
  if (x >= 0 && x <= 1 && y >= 0 && y <= 1 && words.has("at")) Object.assign(view, { pinned: { x, y }, place: { x, y } });
  if (LOOKS.includes(words.get("look"))) view.look = words.get("look");
  const [models, samples, classes] = ["model", "sample", "class"].map((name) => words.getAll(name));
  const panes = models.slice(0, 2).map((model, place) => ({
    model,
    sample: samples[place] || null,
    target: classes[place] || null,
  }));
  return { view, panes };
}

function whole(text) {
  const value = Number(text);
  return text !== null && text !== "" && Number.isInteger(value) && value >= 0 ? value : null;
}

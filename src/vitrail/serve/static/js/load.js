// Everything about one image of one model: its prediction, and its attention, which large models send in parts.

import * as api from "./api.js";
import { Attention } from "./attention.js";
import { readMessage } from "./message.js";
import { patiently } from "./patience.js";

const MOST_AHEAD_BYTES = 64e6; // layers beyond this are fetched when they are looked at

/** Return prediction and attention (null for a model without) of an image. */
export async function load(model, file, { coverage, layer, signal }) {
  const ask = (request) => patiently(request, signal);
  const prediction = await ask(() => api.predict(model.name, file, { coverage, signal }));
  if (!model.attention) return { prediction, attention: null };
  const message = readMessage(await ask(() => api.attention(model.name, file, { layers: around(model, layer), signal })));
  return { prediction, attention: new Attention(message) };
}

/** Fetch the layers that are missing, part by part, the wanted one first; call `arrived` after each part. */
export async function loadRest(model, file, attention, { wanted, arrived, signal }) {
  const { queries, tokens, heads, depth } = attention.header;
  const all = depth * heads * queries * tokens <= MOST_AHEAD_BYTES;
  for (;;) {
    const missing = attention.missing();
    const now = Math.min(wanted(), depth - 1);
    if (!missing.length || (!all && attention.has(now))) return;
    const first = missing.includes(now) ? [now] : [];
    const next = [...first, ...missing.filter((layer) => layer !== now)].slice(0, all ? model.attention.layers_per_message : 1);
    attention.add(readMessage(await patiently(() => api.attention(model.name, file, { layers: next, signal }), signal)));
    arrived();
  }
}

/** The layers of the first message: all, or as many as fit around the one to show. */
function around({ attention: { layers, layers_per_message: most } }, layer) {
  if (most >= layers) return null;
  const first = Math.max(0, Math.min(layer - most + 1, layers - most));
  return Array.from({ length: most }, (_, place) => first + place);
}

// Reads an attention message: the layout is in the docstring of vitrail/serve/attention.py.

const MAGIC = "VATT";

/** Return header, reading, layers and pixels of a message. */
export function readMessage(buffer) {
  const text = new TextDecoder();
  if (text.decode(new Uint8Array(buffer, 0, 4)) !== MAGIC) throw new Error("this is no attention message");
  const length = new DataView(buffer).getUint32(4, true);
  const header = JSON.parse(text.decode(new Uint8Array(buffer, 8, length)));
  const { heads, queries, tokens, layers, size } = header;
  let at = 8 + length;
  const floats = (count) => {
    const part = new Float32Array(buffer, at, count); // the page runs on little-endian machines, as all browsers do
    at += 4 * count;
    return part;
  };
  const bytes = (count) => {
    const part = new Uint8Array(buffer, at, count);
    at += count;
    return part;
  };
  const rows = heads * queries;
  const reading = floats(queries);
  const scales = floats(layers.length * rows);
  const weights = bytes(layers.length * rows * tokens);
  const parts = new Map(
    layers.map((layer, place) => [
      layer,
      {
        scales: scales.subarray(place * rows, (place + 1) * rows),
        weights: weights.subarray(place * rows * tokens, (place + 1) * rows * tokens),
      },
    ]),
  );
  return { header, reading, parts, pixels: size ? bytes(size[0] * size[1] * 3) : null };
}

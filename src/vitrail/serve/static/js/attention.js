// The attention of one image: rows of any layer, head and query, from quantised parts that may come one after another.

/** What the head of the model reads, as a query. */
export const READING = -1;
/** All heads together: the mean of their weights. */
export const MEAN = -1;
const LEVELS = 255;

export class Attention {
  constructor(message) {
    Object.assign(this, { header: message.header, reading: message.reading, pixels: message.pixels });
    const { grid, prefix, queries } = message.header;
    this.grid = grid;
    this.patches = grid[0] * grid[1];
    this.prefix = prefix;
    this.hovers = queries > 1;
    this.parts = new Map(message.parts);
    this.mixed = new Map(); // rows of the reading, which cost a pass over all queries
    const first = this.reading.findIndex((weight) => weight === 1);
    this.readToken = first; // the reading is one token's own row, such as the class token's; -1: a mixture
  }

  /** Add the layers of a later message. */
  add(message) {
    for (const [layer, part] of message.parts) this.parts.set(layer, part);
  }

  has(layer) {
    return this.parts.has(layer);
  }

  /** Layers that are not there yet, in order. */
  missing() {
    return Array.from({ length: this.header.depth }, (_, layer) => layer).filter((layer) => !this.has(layer));
  }

  /** Weights of all tokens: a new array, or null where the layer is not there. */
  row(layer, head, query) {
    const part = this.parts.get(layer);
    if (!part) return null;
    const heads = this.header.heads;
    if (head !== MEAN) return this.#headRow(layer, part, head, query);
    const sum = new Float32Array(this.header.tokens);
    for (let each = 0; each < heads; each++) {
      const row = this.#headRow(layer, part, each, query);
      for (let token = 0; token < sum.length; token++) sum[token] += row[token] / heads;
    }
    return sum;
  }

  #headRow(layer, part, head, query) {
    if (query !== READING) return this.#stored(part, head, query);
    if (this.readToken >= 0) return this.#stored(part, head, this.readToken);
    const key = layer * this.header.heads + head;
    if (!this.mixed.has(key)) this.mixed.set(key, this.#mix(part, head));
    return this.mixed.get(key);
  }

  #stored(part, head, query) {
    const { queries, tokens } = this.header;
    const place = head * queries + query;
    const row = new Float32Array(tokens);
    const scale = part.scales[place] / LEVELS;
    const weights = part.weights;
    for (let token = 0, from = place * tokens; token < tokens; token++) row[token] = weights[from + token] * scale;
    return row;
  }

  #mix(part, head) {
    const sum = new Float32Array(this.header.tokens);
    for (let query = 0; query < this.header.queries; query++) {
      const share = this.reading[query];
      if (!share) continue;
      const row = this.#stored(part, head, query);
      for (let token = 0; token < sum.length; token++) sum[token] += share * row[token];
    }
    return sum;
  }

  /** A row's patches in any unit, and the largest of them: all that a thumbnail needs, without a number being converted. */
  glance(layer, head, query) {
    const part = this.parts.get(layer);
    const token = query === READING ? this.readToken : query;
    if (!part || head === MEAN || token < 0) return this.look(layer, head, query);
    const { queries, tokens } = this.header;
    const start = (head * queries + token) * tokens;
    const patches = part.weights.subarray(start + this.prefix, start + tokens);
    let most = 1; // of 255: a row of nothing is dark
    for (let patch = 0; patch < patches.length; patch++) if (patches[patch] > most) most = patches[patch];
    return { patches, most };
  }

  /** A row's patches, its largest weight among them, where that is, and what goes to the tokens before the patches. */
  look(layer, head, query) {
    const row = this.row(layer, head, query);
    if (!row) return null;
    const patches = row.subarray(this.prefix);
    let best = 0;
    for (let patch = 1; patch < patches.length; patch++) if (patches[patch] > patches[best]) best = patch;
    let prefix = 0;
    for (let token = 0; token < this.prefix; token++) prefix += row[token];
    return { patches, best, most: patches[best], prefix };
  }
}

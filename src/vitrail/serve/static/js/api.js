// Calls to the server. Every failure becomes a Failure, with words for people and a kind for the page.

/** A request that failed. `kind` is "token", "busy", "gone" or "refused". */
export class Failure extends Error {
  constructor(kind, message, retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

const WORDS = {
  413: "The image is too large for this server. Save it smaller, and try again.",
  415: "This is no image that the server can read. Use a JPEG, PNG, WebP or TIFF.",
  503: "The server did not get to it in time. Try again in a moment.",
};
const STEPS = 20; // of insertion and deletion
const IN_TURN = new Set([429, 503]);

let token = ""; // in memory only: never stored, never in a link

/** Set the bearer token of all later calls. */
export function setToken(value) {
  token = value;
}

async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("gone", "The server does not answer. Is vitrail serve still running?");
  }
  if (response.ok) return response;
  const said = await words(response);
  if (response.status === 401) throw new Failure("token", token ? "wrong" : "missing");
  if (IN_TURN.has(response.status)) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    throw new Failure("busy", WORDS[response.status] ?? "The server is busy with other images.", seconds);
  }
  throw new Failure("refused", WORDS[response.status] ?? said ?? `The server answers ${response.status}.`);
}

/** The sentence in an error's body, if it has one. */
async function words(response) {
  try {
    const { detail, error } = await response.json();
    const found = detail ?? error;
    if (typeof found === "string") return found;
    return found?.message ?? found?.[0]?.msg ?? null;
  } catch {
    return null;
  }
}

/** Send an image as it is; parameters that are null are left out. */
function send(path, image, parameters, signal) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  const headers = { "Content-Type": "application/octet-stream" };
  return call(`${path}?${new URLSearchParams(given)}`, { method: "POST", body: image, headers, signal });
}

/** Models with their attention, samples and limits. */
export async function facts() {
  const [served, explorer] = await Promise.all(["v1/model", "v1/explorer"].map(async (path) => (await call(path)).json()));
  const models = served.models.map((model) => ({ ...model, ...explorer.models[model.name] }));
  return { models, samples: explorer.samples, limits: served.limits };
}

/** One sample, as a file. */
export async function sample(id) {
  return (await call(`v1/samples/${id}`)).blob();
}

/** The prediction for one image, with the set of a coverage if one is given. */
export async function predict(model, image, { coverage, signal }) {
  return (await (await send("v1/predict", image, { model, coverage }, signal)).json()).predictions[0];
}

/** The attention message of one image: some layers, or as many as one answer holds. */
export async function attention(model, image, { layers, signal }) {
  return (await send("v1/attention", image, { model, layers: layers?.join(",") }, signal)).arrayBuffer();
}

/** The map of a method for a class, with its faithfulness: insertion less deletion, beside that of random orders. */
export async function explain(model, image, { method, target, signal }) {
  const answer = await (await send("v1/explain", image, { model, method, target, steps: STEPS }, signal)).json();
  const [{ map, note, insertion, deletion, random_insertion, random_deletion }] = answer.maps;
  const scores = insertion === null ? null : { gap: insertion - deletion, random: random_insertion - random_deletion };
  return { map, note, signed: answer.signed, target: answer.target, scores };
}

// One image under one model: picture, predictions, window and methods, and the loading of them.

import * as api from "./api.js";
import { copyOf, make, sentence } from "./dom.js";
import { Lattice } from "./lattice.js";
import { load, loadRest } from "./load.js";
import { Methods } from "./methods.js";
import { tell } from "./notice.js";
import { patiently } from "./patience.js";
import { showPredictions } from "./predictions.js";
import { sourceOf } from "./source.js";
import { Stage } from "./stage.js";

export class Pane {
  /** `facts` are the server's; `page` has `changed()` and `wantImage(pane)`. */
  constructor(facts, view, page) {
    Object.assign(this, { facts, view, page, sample: null, file: null, attention: null });
    this.element = copyOf("pane");
    this.stage = new Stage(this.element.querySelector(".stage"), view);
    this.lattice = new Lattice(this.element.querySelector(".lattice"), view);
    this.methods = new Methods(this.element.querySelector(".methods"), {
      ask: (method, target) => patiently(() => api.explain(this.model, this.file, { method, target })),
      failed: (failure) => this.#failed(failure, () => this.methods.run()),
    });
    this.models = this.element.querySelector(".model select");
    this.models.append(...facts.models.map(({ name }) => make("option", { value: name }, name)));
    this.element.querySelector(".model").hidden = facts.models.length < 2;
    this.models.addEventListener("change", () => this.reload());
    this.element.querySelector(".other").addEventListener("click", () => page.wantImage(this));
  }

  get model() {
    return this.models.value;
  }

  set model(name) {
    this.models.value = name;
    if (!this.models.value) this.models.selectedIndex = 0; // a link to a model that is not served
  }

  get target() {
    return this.element.querySelector(".maps").hasChildNodes() ? this.methods.target.value : null;
  }

  #modelFacts() {
    return this.facts.models.find(({ name }) => name === this.model);
  }

  /** Show a sample by its id. */
  async showSample(id) {
    const found = this.facts.samples.find((each) => each.id === id);
    if (!found) return tell(`The server has no sample "${id}".`);
    try {
      const blob = await patiently(() => api.sample(id));
      return await this.showFile(new File([blob], found.name, { type: blob.type }), id);
    } catch (failure) {
      return this.#failed(failure, () => this.showSample(id));
    }
  }

  /** Show an image. What is too large or no image is refused before it is sent. */
  async showFile(file, sample = null) {
    const most = this.facts.limits.max_body_bytes;
    if (file.size > most) {
      const [has, takes] = [file.size, most].map((bytes) => `${(bytes / 1e6).toFixed(1)} MB`);
      return tell(`The file ${file.name} has ${has}, and this server takes ${takes}. Save it smaller, and try again.`);
    }
    return this.#load(file, sample);
  }

  /** Ask the chosen model about the image that is shown. */
  reload() {
    return this.file ? this.#load(this.file, this.sample) : null;
  }

  /** Load an image; until it is there, and where it fails, what was shown before stays. */
  async #load(file, sample) {
    this.abort?.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    const model = this.#modelFacts();
    this.#waiting(true);
    try {
      const coverage = model.calibration?.coverage ? this.page.coverage : null;
      const found = await load(model, file, { coverage, layer: this.view.state.layer, signal });
      const source = await sourceOf(file, model.preprocessing, found.attention);
      if (signal.aborted) return;
      Object.assign(this, { file, sample });
      this.#show(model, file, found, source);
      if (found.attention) await this.#rest(model, file, signal);
    } catch (failure) {
      if (!signal.aborted) this.#failed(failure, () => this.#load(file, sample));
    } finally {
      if (!signal.aborted) this.#waiting(false);
    }
  }

  #rest(model, file, signal) {
    const wanted = () => this.view.state.layer;
    this.more = () => {
      this.more = null;
      return loadRest(model, file, this.attention, { wanted, arrived: () => this.draw(), signal }).then(() => {
        if (this.attention.missing().length) this.more = () => this.#rest(model, file, signal);
      });
    };
    return this.more();
  }

  #show(model, file, { prediction, attention }, source) {
    this.attention = attention;
    this.element.querySelector(".name").textContent = file.name;
    this.#showPrediction(model, prediction);
    const why = this.element.querySelector(".why");
    why.textContent = [model.why, attention?.header.note].filter(Boolean).map(sentence).join(" ");
    why.hidden = !why.textContent;
    this.element.querySelector(".window .count").textContent = attention
      ? `${attention.header.depth} × ${attention.header.heads}`
      : "";
    this.element.querySelector(".lattice").hidden = !attention;
    this.element.classList.add("full");
    if (source) this.stage.show(source, attention);
    else tell("Neither this browser nor the server can show this picture, but the predictions are there.");
    this.lattice.show(attention);
    this.methods.show(model, prediction, source);
    this.draw();
    this.page.changed();
  }

  #showPrediction(model, prediction) {
    const choose = (coverage) => {
      this.page.coverage = coverage;
      this.#predictAgain(model);
    };
    showPredictions(this.element.querySelector(".predictions"), model, prediction, { coverage: this.page.coverage, choose });
  }

  /** Ask for the set of another coverage. */
  async #predictAgain(model) {
    const { coverage } = this.page;
    try {
      const prediction = await patiently(() => api.predict(model.name, this.file, { coverage, signal: this.abort.signal }));
      this.#showPrediction(model, prediction);
    } catch (failure) {
      this.#failed(failure, () => this.#predictAgain(model));
    }
  }

  /** Draw what the view says: the picture at once, the window with the next frame. */
  draw() {
    this.stage.draw();
    if (!this.attention) return;
    if (!this.attention.has(this.stage.at.layer)) this.more?.();
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.lattice.draw(this.stage.at, this.stage.query);
    });
  }

  #waiting(on) {
    this.element.querySelector(".wait").hidden = !on;
    this.element.setAttribute("aria-busy", String(on));
  }

  #failed(failure, again) {
    if (failure.name === "AbortError") return;
    const retry = failure.kind === "gone" || failure.kind === "busy";
    tell(failure.message, retry ? { label: "Try again", run: again } : null);
  }
}

// Starts the page: facts of the server, panes, the view of the link, and what the buttons do.

import * as api from "./api.js";
import { Controls } from "./controls.js";
import { announce, make } from "./dom.js";
import { listen } from "./intake.js";
import { fromFragment, toFragment } from "./link.js";
import { hush, tell } from "./notice.js";
import { Pane } from "./pane.js";
import { patiently } from "./patience.js";
import { initTheme } from "./theme.js";
import { savePicture } from "./save.js";
import { View } from "./view.js";

const byId = (id) => document.getElementById(id);
const view = new View();
const panes = [];
let facts = null;
let active = null; // the pane that the next image goes to

const page = {
  coverage: 0.9,
  changed() {
    controls.show(panes.map(({ attention }) => attention).filter(Boolean));
    markSamples();
    remember();
  },
  wantImage(pane) {
    active = pane;
    openDialog();
  },
};

const controls = new Controls(byId("controls"), view);
view.onChange((changed) => {
  for (const pane of panes) pane.draw();
  if (!(changed.size === 1 && changed.has("place"))) remember();
});
const openDialog = listen((file, element) => {
  const pane = panes.find((each) => each.element === element) ?? active ?? panes[0];
  if (!pane) return;
  active = null;
  hush();
  pane.showFile(file);
});

initTheme(byId("theme"));
byId("pick").addEventListener("click", () => page.wantImage(panes.at(-1)));
byId("compare").addEventListener("click", toggleCompare);
byId("share").addEventListener("click", copyLink);
byId("save").addEventListener("click", save);
byId("keys-open").addEventListener("click", () => byId("keys").showModal());
window.addEventListener("hashchange", () => location.hash !== written && restore());

let written = "";
let clock = 0;

/** Write the view into the address, a moment later: browsers refuse too many changes. */
function remember() {
  clearTimeout(clock);
  clock = setTimeout(() => {
    written = toFragment(view.state, panes);
    history.replaceState(null, "", written);
  }, 250);
}

async function start() {
  try {
    facts = await patiently(api.facts);
  } catch (failure) {
    tell(failure.message, { label: "Try again", run: start });
    return;
  }
  byId("samples").replaceChildren(...facts.samples.map(sampleButton));
  showSamples();
  await restore();
}

/** Show what the address says, or else the first sample at the last layer. */
async function restore() {
  const found = fromFragment(location.hash);
  const first = { model: facts.models[0].name, sample: facts.samples[0]?.id ?? null, target: null };
  const wanted = found.panes.length ? found.panes : [first];
  const layers = facts.models.find(({ name }) => name === wanted[0].model)?.attention?.layers ?? 1;
  view.set({ layer: layers - 1, head: -1, pinned: null, place: null, look: "lit", ...found.view });
  while (panes.length > wanted.length) removePane();
  while (panes.length < wanted.length) addPane();
  await Promise.all(
    wanted.map(async ({ model, sample, target }, place) => {
      const pane = panes[place];
      pane.model = model;
      if (!sample) {
        tell("This link is of an image that is not in it: images of one's own never leave their page. Bring it again, or take a sample.");
        return;
      }
      await pane.showSample(sample);
      if (target) await pane.methods.run(target);
    }),
  );
}

function addPane() {
  const pane = new Pane(facts, view, page);
  pane.element.addEventListener("pointerdown", () => (active = pane));
  pane.element.addEventListener("focusin", () => (active = pane));
  panes.push(pane);
  byId("panes").append(pane.element);
  shape();
  return pane;
}

function removePane() {
  const pane = panes.pop();
  pane.abort?.abort();
  pane.element.remove();
  active = null;
  shape();
  page.changed();
}

function shape() {
  byId("panes").classList.toggle("two", panes.length === 2);
  byId("compare").setAttribute("aria-pressed", String(panes.length === 2));
}

/** Put a second pane beside the first: the next model on the same image, or else the next sample. */
async function toggleCompare() {
  if (!facts || !panes.length) return;
  if (panes.length === 2) return removePane();
  const [first] = panes;
  const second = addPane();
  const next = (list, now) => list[(list.indexOf(now) + 1) % list.length];
  second.model = next(facts.models.map(({ name }) => name), first.model);
  if (facts.models.length > 1 && first.file) await second.showFile(first.file, first.sample);
  else await second.showSample(next(facts.samples.map(({ id }) => id), first.sample));
  active = second;
}

function sampleButton({ id, name }) {
  const canvas = make("canvas", { width: 56, height: 56, "aria-hidden": "true" });
  const button = make("button", { type: "button", title: name, "aria-label": `Sample: ${name}` }, canvas);
  button.dataset.sample = id;
  button.addEventListener("click", () => {
    hush();
    (active ?? panes[0]).showSample(id);
  });
  return button;
}

/** Draw the samples' pictures: fetched as files, for with a token the browser alone can't load them. */
async function showSamples() {
  for (const button of byId("samples").children) {
    try {
      const bitmap = await createImageBitmap(await api.sample(button.dataset.sample));
      const canvas = button.firstChild;
      const side = Math.min(bitmap.width, bitmap.height);
      const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
      canvas.getContext("2d").drawImage(bitmap, x, y, side, side, 0, 0, canvas.width, canvas.height);
    } catch {
      button.classList.add("absent"); // its name is still there
    }
  }
}

function markSamples() {
  for (const button of byId("samples").children) {
    button.setAttribute("aria-pressed", String(panes.some(({ sample }) => sample === button.dataset.sample)));
  }
}

async function copyLink() {
  const address = new URL(toFragment(view.state, panes), location.href).href;
  const own = panes.some(({ sample }) => !sample);
  history.replaceState(null, "", address);
  const note = own ? " Your own image is not in it: it never leaves this page and its server." : "";
  try {
    await navigator.clipboard.writeText(address);
    tell(`The link is in the clipboard.${note}`);
  } catch {
    tell(`The link is in the address bar.${note}`); // no clipboard without https or loopback
  }
  announce("Link copied");
}

function save() {
  const shown = panes.filter(({ stage }) => stage.source);
  if (!shown.length) return;
  const [{ stage, attention, model }] = shown;
  const { layer, head } = attention ? stage.at : {};
  const heads = head === -1 ? "all heads" : `head ${head}`;
  savePicture(shown, attention ? `${model} · layer ${layer}, ${heads} · Vitrail` : `${model} · Vitrail`);
}

start();

// Glass: a scale of colours for each head, from lead (dark) through the head's hue to light. Mixed in OKLCH, as perceived.

const STEPS = 256;
const HUES = [262, 75, 22, 165, 300, 225, 45, 130, 345, 195, 95, 280, 10, 150, 320, 245]; // cobalt, amber, ruby, emerald, violet …
const LIGHT_HUE = 85;

const scales = new Map();
const packed = new Map();

/** 256 colours (r, g, b each) of a head; of the mean of all heads, -1, warm white light. */
export function scaleOf(head) {
  if (!scales.has(head)) scales.set(head, head < 0 ? make(LIGHT_HUE, 0.085) : make(HUES[head % HUES.length], 0.17));
  return scales.get(head);
}

/** The colour of a head's glass as CSS, for marks and labels. */
export function glassOf(head) {
  const scale = scaleOf(head);
  const at = 3 * 165;
  return `rgb(${scale[at]} ${scale[at + 1]} ${scale[at + 2]})`;
}

const FINE = 4096;
const curve = Uint8Array.from({ length: FINE + 1 }, (_, step) => Math.round((STEPS - 1) * Math.pow(step / FINE, 0.65)));

/** Brightness of a share of the largest weight: its power 0.65, for attention falls steeply. The legend has it too. */
export function brightness(share) {
  return curve[share <= 0 ? 0 : share >= 1 ? FINE : (FINE * share) | 0];
}

/** The colours of a head as whole pixels, for many small pictures at once. */
export function pixelsOf(head) {
  if (!packed.has(head)) {
    const scale = scaleOf(head);
    const bytes = new Uint8ClampedArray(4 * STEPS).fill(255);
    for (let step = 0; step < STEPS; step++) bytes.set(scale.subarray(3 * step, 3 * step + 3), 4 * step);
    packed.set(head, new Uint32Array(bytes.buffer));
  }
  return packed.get(head);
}

/** Blue against, amber for: the scale of signed maps, its middle dark. */
export function signedScale() {
  const [against, speaking] = [make(255, 0.15), make(70, 0.15)];
  const both = new Uint8ClampedArray(3 * STEPS);
  for (let step = 0; step < STEPS; step++) {
    const far = Math.abs(step - 127.5) / 127.5;
    const from = 3 * Math.round(far * (STEPS - 1));
    both.set((step < 128 ? against : speaking).subarray(from, from + 3), 3 * step);
  }
  return both;
}

function make(hue, chroma) {
  const colors = new Uint8ClampedArray(3 * STEPS);
  for (let step = 0; step < STEPS; step++) {
    const at = step / (STEPS - 1);
    const lightness = 0.17 + 0.8 * at;
    const strength = chroma * Math.sin(Math.PI * Math.pow(at, 0.85)) + 0.02;
    colors.set(fromOklch(lightness, strength, hue), 3 * step);
  }
  return colors;
}

function fromOklch(lightness, chroma, hue) {
  const angle = (hue * Math.PI) / 180;
  const [a, b] = [chroma * Math.cos(angle), chroma * Math.sin(angle)];
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map(toByte);
}

function toByte(linear) {
  const value = linear <= 0.0031308 ? 12.92 * linear : 1.055 * Math.pow(linear, 1 / 2.4) - 0.055;
  return 255 * value;
}

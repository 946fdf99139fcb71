// Draws a picture with light through it: the image, panes lit by values, lead between them, and the pane that looks.

import { brightness, pixelsOf } from "./colors.js";

const LEAD = "rgb(12 13 18)";
const GLOW = 0.5;
const LEAST_LIGHT = 0.32;
const SMALL_PX = 64; // images below this are drawn as pixels

const panes = document.createElement("canvas");

/**
 * Draw on a canvas of any size.
 * `source` is the image, `grid` rows and columns, `values` one for each pane (null: none), `most` the value of full light,
 * `colors` the scale, `query` the number of the pane that looks (null: none).
 */
export function drawPicture(canvas, { source, grid, values, most, colors, look, query }) {
  const context = canvas.getContext("2d");
  const { width, height } = canvas;
  context.imageSmoothingEnabled = Math.max(source.width, source.height) >= SMALL_PX;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  if (values && look !== "bare") {
    context.imageSmoothingEnabled = false;
    if (look === "glass") {
      layer(context, "source-over", grid, (patch) => colorAt(colors, values[patch] / most));
    } else if (look === "signed") {
      context.globalAlpha = 0.8;
      layer(context, "source-over", grid, (patch) => linear(colors, values[patch] / most));
      context.globalAlpha = 1;
    } else {
      layer(context, "multiply", grid, (patch) => veil(colors, values[patch] / most));
      layer(context, "screen", grid, (patch) => glow(colors, values[patch] / most));
    }
    lead(context, grid, width, height);
  }
  if (query !== null) frame(context, grid, query, width, height);
}

/** Draw the legend: values from 0 to the largest, from left to right. */
export function drawScale(canvas, colors) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${colorAt(colors, x / (canvas.width - 1)).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

/** Draw a map alone, one pixel of a canvas for each pane: thumbnails. */
export function drawThumbnail(canvas, values, most, head) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  const colors = pixelsOf(head);
  for (let patch = 0; patch < values.length; patch++) pixels[patch] = colors[brightness(values[patch] / most)];
  context.putImageData(image, 0, 0);
}

function layer(context, mode, [rows, columns], colorOf) {
  panes.width = columns;
  panes.height = rows;
  const small = panes.getContext("2d");
  const image = small.createImageData(columns, rows);
  for (let patch = 0; patch < rows * columns; patch++) image.data.set([...colorOf(patch), 255], 4 * patch);
  small.putImageData(image, 0, 0);
  context.globalCompositeOperation = mode;
  context.drawImage(panes, 0, 0, context.canvas.width, context.canvas.height);
  context.globalCompositeOperation = "source-over";
}

function colorAt(colors, share) {
  const from = 3 * brightness(share);
  return [colors[from], colors[from + 1], colors[from + 2]];
}

function linear(colors, share) {
  const from = 3 * Math.round(255 * share);
  return [colors[from], colors[from + 1], colors[from + 2]];
}

function veil(colors, share) {
  const light = brightness(share) / 255;
  const tint = colorAt(colors, share);
  return tint.map((value) => (LEAST_LIGHT + (1 - LEAST_LIGHT) * light) * (0.45 * value + 0.55 * 255));
}

function glow(colors, share) {
  const light = GLOW * (brightness(share) / 255) ** 1.5;
  return colorAt(colors, share).map((value) => light * value);
}

function lead(context, [rows, columns], width, height) {
  const [down, across] = [height / rows, width / columns];
  context.strokeStyle = LEAD;
  context.globalAlpha = 0.75;
  context.lineWidth = Math.max(1, Math.min(down, across) * 0.035);
  context.beginPath();
  for (let row = 1; row < rows; row++) {
    context.moveTo(0, row * down);
    context.lineTo(width, row * down);
  }
  for (let column = 1; column < columns; column++) {
    context.moveTo(column * across, 0);
    context.lineTo(column * across, height);
  }
  context.stroke();
  context.globalAlpha = 1;
}

function frame(context, [rows, columns], query, width, height) {
  const [down, across] = [height / rows, width / columns];
  const [x, y] = [(query % columns) * across, Math.floor(query / columns) * down];
  const line = Math.max(2, Math.min(down, across) * 0.07);
  context.lineJoin = "round";
  for (const [color, wide] of [
    ["rgb(0 0 0 / 0.75)", 2.2 * line],
    ["#ffffff", line],
  ]) {
    context.strokeStyle = color;
    context.lineWidth = wide;
    context.strokeRect(x, y, across, down);
  }
}

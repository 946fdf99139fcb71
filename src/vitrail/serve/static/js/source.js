// The picture under the map: the original at full sharpness, cropped as the model crops it, or the model's own pixels.

const MOST_PX = 1400;

/** Return a canvas with what the model looks at, or null where neither the browser nor the server can show it. */
export async function sourceOf(file, preprocessing, attention) {
  const sharp = preprocessing.in_channels === 3 ? await decode(file) : null;
  const [height, width] = preprocessing.img_size;
  if (sharp && sharp.width >= width && sharp.height >= height) return cropped(sharp, preprocessing);
  if (attention?.pixels) return fromPixels(attention.pixels, attention.header.size);
  const any = sharp ?? (await decode(file));
  return any ? cropped(any, preprocessing) : null;
}

async function decode(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return null; // a format that this browser does not know
  }
}

/** Part of an image that the evaluation view keeps: resized to cover size / crop, then the centre (data/decode.py). */
export function cropBox(width, height, { img_size, crop_pct: crop, crop_mode: mode }) {
  if (mode === "squash") {
    const [w, h] = [width * crop, height * crop];
    return [(width - w) / 2, (height - h) / 2, w, h];
  }
  const [rows, columns] = img_size;
  const scale = Math.max(rows / crop / height, columns / crop / width);
  const [w, h] = [columns / scale, rows / scale];
  return [(width - w) / 2, (height - h) / 2, w, h];
}

function cropped(bitmap, preprocessing) {
  const [x, y, w, h] = cropBox(bitmap.width, bitmap.height, preprocessing);
  const [rows, columns] = preprocessing.img_size;
  const least = Math.min(MOST_PX, Math.max(w, columns));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(least);
  canvas.height = Math.round((least * rows) / columns);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, x, y, w, h, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

function fromPixels(pixels, [height, width]) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const image = canvas.getContext("2d").createImageData(width, height);
  for (let from = 0, to = 0; from < pixels.length; to += 4) {
    image.data[to] = pixels[from++];
    image.data[to + 1] = pixels[from++];
    image.data[to + 2] = pixels[from++];
    image.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

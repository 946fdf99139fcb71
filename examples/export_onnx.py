"""Open an ONNX export of decoded images (`vitrail export RUN --to onnx --raw-images`) with onnxruntime, numpy and Pillow alone.

python export_onnx.py EXPORT IMAGES…        prints a line of JSON for each image: path, label and logits
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder, *paths = map(Path, sys.argv[1:])
card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
mode = "L" if card["preprocessing"]["in_channels"] == 1 else "RGB"
session = onnxruntime.InferenceSession(folder / "model.onnx")
for path in paths:
    image = Image.open(path).convert(mode)
    pixels = np.asarray(image).reshape(1, image.height, image.width, -1)  # uint8 (1, H, W, C)
    logits = session.run(["logits"], {"images": pixels})[0][0]
    print(json.dumps({"path": str(path), "label": card["classes"][logits.argmax()], "logits": logits.tolist()}))

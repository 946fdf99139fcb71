"""Open an OpenVINO export of decoded images (`vitrail export RUN --to openvino --raw-images`) with openvino, numpy and Pillow.

python export_openvino.py EXPORT IMAGES…    prints a line of JSON for each image: path, label and logits
"""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from PIL import Image

folder, *paths = map(Path, sys.argv[1:])
card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
mode = "L" if card["preprocessing"]["in_channels"] == 1 else "RGB"
precision = {"INFERENCE_PRECISION_HINT": "f32"}  # else bf16 where the processor has it, which the contract does not cover
model = openvino.Core().compile_model(folder / "model.xml", "CPU", precision)
for path in paths:
    image = Image.open(path).convert(mode)
    pixels = np.asarray(image).reshape(1, image.height, image.width, -1)  # uint8 (1, H, W, C)
    logits = model(pixels)["logits"][0]
    print(json.dumps({"path": str(path), "label": card["classes"][logits.argmax()], "logits": logits.tolist()}))

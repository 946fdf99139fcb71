"""What `vitrail evaluate --robustness` costs, and a picture of every corruption.

    python benchmarks/robustness.py --run RUN [--data fashion-mnist] [--images 1000] [--out FILE]
    python benchmarks/robustness.py --picture PHOTOS

The first measures the run on the data's test images, whose weights don't matter for the time, and by corruption the seconds of
changing the images alone. `load` is the machine's load average before and after, this process included; seconds of the
processor hold better on a machine that does other work. Writes benchmarks/results/robustness.json. The second draws all
corruptions at all severities on one of the photographs, as docs/pictures/corruptions.jpg.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import machine
from vitrail.data.draws import Draws
from vitrail.data.sources import open_source
from vitrail.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vitrail.evaluate.evaluate import compute_logits
from vitrail.evaluate.robustness import measure_robustness
from vitrail.evaluate.run import open_run
from vitrail.explain import sample_images
from vitrail.settings import Preprocessing

PICTURE = machine.ROOT / "docs" / "pictures" / "corruptions.jpg"
SIDE, MARGIN = 112, 2
"""Side of a thumbnail, and the space between two, in pixels."""


def measure(run: str, data: str, images: int) -> dict[str, Any]:
    """Return seconds of an evaluation of all test images, of the whole measurement, and of each corruption alone."""
    load = os.getloadavg()[0]
    opened = open_run(run, data)
    split = opened.load_split()
    start = time.perf_counter()
    compute_logits(
        opened.model,
        split,
        preprocessing=opened.preprocessing,
        device=opened.device,
        autocast_dtype=opened.autocast_dtype,
    )
    evaluation_s, cpu_s = time.perf_counter() - start, time.process_time()
    result = measure_robustness(run, data, images=images)
    cpu_s = time.process_time() - cpu_s
    raw, _ = split.read(torch.arange(min(256, len(split))))
    draws = Draws(seed=0, epoch=0, indexes=raw.indexes)
    corruption_ms = {}
    for name in CORRUPTIONS:
        start = time.perf_counter()
        for severity in SEVERITIES:
            corrupt(raw.images, name, severity, draws=draws)
        corruption_ms[name] = round(1000 * (time.perf_counter() - start) / len(SEVERITIES) / len(raw), 4)
    return {
        "machine": machine.facts(),
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "data": data,
        "split_images": result.split_images,
        "images": result.images,
        "img_size": list(result.img_size),
        "measurements": sum(map(len, result.corruptions.values())) + sum(map(len, result.sweeps.values())),
        "evaluation_s": round(evaluation_s, 1),
        "robustness_s": round(result.seconds, 1),
        "robustness_cpu_s": round(cpu_s, 1),
        "corruption_ms_per_image": corruption_ms,
    }


def draw_picture(photos: str, *, index: int) -> Image.Image:
    """Draw one photograph under every corruption (column) and severity (row), with its name above."""
    view = Preprocessing(img_size=(224, 224), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9)
    image = sample_images(open_source(photos), preprocessing=view, limit=64).raw.images[index : index + 1]
    draws = Draws(seed=0, epoch=0, indexes=torch.tensor([index]))
    across, head = 5, 18
    rows = -(-len(CORRUPTIONS) // across)
    step = SIDE + MARGIN
    # Three blocks of five corruptions; each is a row of five severities.
    block = len(SEVERITIES) * step + 10
    sheet = Image.new("RGB", (rows * block, across * (step + head)), "white")
    font, pen = ImageFont.load_default(12), ImageDraw.Draw(sheet)
    for place, name in enumerate(CORRUPTIONS):
        left, top = place // across * block, place % across * (step + head)
        pen.text((left + 2, top + 2), name, fill="black", font=font)
        for column, severity in enumerate(SEVERITIES):
            pixels = corrupt(image, name, severity, draws=draws)[0].permute(1, 2, 0).numpy()
            small = Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), Image.Resampling.BOX)
            sheet.paste(small, (left + column * step, top + head))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=str)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "robustness.json")
    parser.add_argument("--picture", metavar="PHOTOS")
    parser.add_argument("--index", type=int, default=17)
    args = parser.parse_args()
    if args.picture:
        draw_picture(args.picture, index=args.index).save(PICTURE, quality=88)
    if args.run:
        found = measure(args.run, args.data, args.images)
        print(json.dumps(found, indent=1))
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

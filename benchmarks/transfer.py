"""Does transfer transfer? Weights from Fashion-MNIST's first five classes learn the other five from few images.

    python benchmarks/transfer.py [--draws 5] [--minutes 3] [--steps 200] [--shots 1 5 10 100] [--out FILE]

A small ViT is trained on the first five classes. Then, for every number of images a class and every draw of them: k-NN and a
linear probe on its frozen features, fine-tuning with the settings that `vitrail train --weights` fits to the data, and
training from random weights, each scored on all test images of the other five classes. The ladder's advice is right where
fine-tuning beat the probe and it said so, or did not and it said so. Writes benchmarks/results/transfer.json.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

import vitrail
from machine import RESULTS, facts
from vitrail.config import DataConfig, Preprocessing
from vitrail.data.sources import open_source
from vitrail.evaluate import Evaluation

FIRST, OTHERS = range(5), range(5, 10)
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t at 97.5 %, by number of draws
SHAPE = {"name": "Ti/4", "img_size": 28, "depth": 4, "class_token": False, "pool": "avg"}
VIEW = {"crop_pct": 1.0, "val_fraction": 0.0}
QUIET = Console(file=io.StringIO())


def pixels(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images (N, 28, 28) of a side of Fashion-MNIST, and their labels."""
    source = open_source("fashion-mnist", val_fraction=0.0)
    images = Preprocessing(img_size=(28, 28), in_channels=1, mean=source.mean, std=source.std)
    loaded = source.load(split, preprocessing=images, cfg=DataConfig())  # type: ignore[arg-type]
    raw, _ = loaded.read(torch.arange(len(loaded)))
    return raw.images[:, 0], raw.labels


def write(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    """The images as PNG files, one folder per class."""
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / f"class-{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{number:05}.png", compress_level=1)


def draw(labels: torch.Tensor, *, shots: int, seed: int) -> torch.Tensor:
    """Positions of `shots` images of each of the other classes."""
    generator = torch.Generator().manual_seed(1000 * shots + seed)
    of_class = [torch.nonzero(labels == k)[:, 0] for k in OTHERS]
    return torch.cat([found[torch.randperm(len(found), generator=generator)[:shots]] for found in of_class])


def pretrain(place: Path, *, minutes: float) -> vitrail.Run:
    """Weights from the first five classes."""
    for split in ("train", "test"):
        images, labels = pixels(split)
        chosen = labels < len(FIRST)
        write(place / "first" / split, images[chosen], labels[chosen])
    data = place / "first"
    return vitrail.train(
        data, out=place / "base", recipe="fashion-mnist", model=SHAPE, data=VIEW, minutes=minutes, console=QUIET
    )


def one_cell(place: Path, base: vitrail.Run, *, shots: int, seed: int, steps: int) -> dict[str, Any]:
    """One draw: every way to learn from it, scored."""
    folder, (images, labels) = place / f"{shots}-{seed}", pixels("train")
    chosen = draw(labels, shots=shots, seed=seed)
    write(folder / "train", images[chosen], labels[chosen])
    (folder / "test").symlink_to(place / "others")
    common: dict[str, Any] = {
        "data": VIEW,
        "train": {"steps": steps, "eval_every": 0, "seed": seed},
        "console": QUIET,
    }
    tuned = vitrail.train(folder, weights=base.folder, out=folder / "tuned", **common)
    scratch = vitrail.train(folder, recipe="fashion-mnist", model=SHAPE, out=folder / "scratch", **common)
    rungs = json.loads((tuned.folder / "ladder.json").read_text())
    cell = {"shots": shots, "seed": seed, "knn": rungs["knn"]["test"]["accuracy"], "probe": rungs["probe"]["test"]["accuracy"]}
    assert isinstance(tuned.evaluation, Evaluation)
    assert isinstance(scratch.evaluation, Evaluation)
    cell |= {"fine-tuned": tuned.evaluation.top1, "scratch": scratch.evaluation.top1, "advice": rungs["advice"]["finetune"]}
    return {**cell, "advice_right": cell["advice"] == (cell["fine-tuned"] > cell["probe"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=3.0, help="of pre-training")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning and of training from scratch")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10, 100])
    parser.add_argument("--out", type=Path, default=RESULTS / "transfer.json")
    args = parser.parse_args()
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base = pretrain(place, minutes=args.minutes)
        assert isinstance(base.evaluation, Evaluation)
        learned = base.evaluation.top1
        print(f"pre-training: {learned:.1%} of the first five classes", flush=True)
        images, labels = pixels("test")
        others = labels >= len(FIRST)
        write(place / "others", images[others], labels[others])
        for shots in args.shots:
            for seed in range(args.draws):
                cells.append(one_cell(place, base, shots=shots, seed=seed, steps=args.steps))
                print(cells[-1], flush=True)
    rows = {}
    for shots in args.shots:
        of = [cell for cell in cells if cell["shots"] == shots]
        rows[str(shots)] = {way: interval([cell[way] for cell in of]) for way in ("knn", "probe", "fine-tuned", "scratch")}
    right = statistics.mean(cell["advice_right"] for cell in cells)
    result = {
        "machine": facts(),
        "pretraining": {"minutes": args.minutes, "accuracy": learned},
        "steps": args.steps,
        "test_images": int(others.sum()),
        "rows": rows,
        "advice_right": right,
        "cells": cells,
    }
    print(f"the advice agrees with what won in {right:.0%} of {len(cells)} cells")
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def interval(values: list[float]) -> dict[str, float]:
    """Mean over the draws with its 95 % interval by Student's t."""
    mean = statistics.mean(values)
    half = T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


if __name__ == "__main__":
    main()

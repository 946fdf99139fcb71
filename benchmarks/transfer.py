"""Does transfer transfer? Weights from Fashion-MNIST's first five classes learn the other five from few images.

    python benchmarks/transfer.py [--draws 5] [--first-draw 5] [--epochs 6] [--shots 1 5 10 100] [--weights RUN] [--out FILE]
    python benchmarks/transfer.py --again          only the advice, by the rules of today on the facts that were measured

A small ViT is trained on the first five classes. Then, for every number of images a class and every draw of them: k-NN and a
linear probe on its frozen features, fine-tuning with the settings that `vitrail train --weights` fits to the data, and
training from random weights for as many steps, each scored on all test images of the other five classes. The draws begin with
number 5, for those before it were looked at when the rules of fine-tuning and of the advice were made. The ladder's
advice is right where fine-tuning beat the probe and it said so, or did not and it said so. Writes
benchmarks/results/transfer.json, after each cell.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

import vitrail
from machine import RESULTS, facts
from vitrail.data.sources import open_source
from vitrail.evaluate import Evaluation
from vitrail.evaluate.intervals import Accuracy, mean_interval
from vitrail.settings import DataConfig, Preprocessing
from vitrail.settings.layers import from_yaml
from vitrail.train.ladder import BaselineScores, advise

FIRST, OTHERS = range(5), range(5, 10)
WAYS = ("knn", "probe", "fine-tuned", "scratch")
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


def pretrain(place: Path, *, epochs: float) -> vitrail.Run:
    """Weights from the first five classes."""
    for split in ("train", "test"):
        images, labels = pixels(split)
        chosen = labels < len(FIRST)
        write(place / "first" / split, images[chosen], labels[chosen])
    data = place / "first"
    length: dict[str, Any] = {"epochs": epochs, "minutes": None}
    return vitrail.train(data, out=place / "base", recipe="fashion-mnist", model=SHAPE, data=VIEW, train=length, console=QUIET)


def one_cell(place: Path, weights: Path, *, shots: int, seed: int) -> dict[str, Any]:
    """One draw: every way to learn from it, scored."""
    folder, (images, labels) = place / f"{shots}-{seed}", pixels("train")
    write(folder / "train", *(values[draw(labels, shots=shots, seed=seed)] for values in (images, labels)))
    (folder / "test").symlink_to(place / "others")
    common: dict[str, Any] = {"data": VIEW, "console": QUIET}
    length: dict[str, Any] = {"eval_every": 0, "seed": seed}
    tuned = vitrail.train(folder, weights=weights, out=folder / "tuned", train=length, **common)
    length |= {"steps": tuned.steps, "minutes": None, "batch_size": batch_size(tuned)}
    scratch = vitrail.train(folder, recipe="fashion-mnist", model=SHAPE, out=folder / "scratch", train=length, **common)
    rungs = json.loads((tuned.folder / "ladder.json").read_text())
    cell: dict[str, Any] = {"shots": shots, "seed": seed, "steps": tuned.steps}
    cell |= {rung: rungs[rung]["test"]["accuracy"] for rung in ("knn", "probe")}
    assert isinstance(tuned.evaluation, Evaluation)
    assert isinstance(scratch.evaluation, Evaluation)
    cell |= {"fine-tuned": tuned.evaluation.top1, "scratch": scratch.evaluation.top1}
    known = {"knn": rungs["knn"]["val"], "probe": rungs["probe"]["val"], "probe_train": rungs["probe"]["train"]}
    return judged(cell | {"facts": known})


def judged(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell with the ladder's advice on its facts, and whether what won agrees."""
    known = cell["facts"]
    rungs = {name: Accuracy(known[name]["correct"], known[name]["count"]) for name in ("knn", "probe", "probe_train")}
    advice = advise(BaselineScores(images=cell["shots"] * len(OTHERS), classes=len(OTHERS), **rungs))
    right = advice.finetune == (cell["fine-tuned"] > cell["probe"])
    return cell | {"advice": advice.finetune, "why": advice.why, "advice_right": right}


def batch_size(run: vitrail.Run) -> int:
    """What a run was trained with."""
    return from_yaml((run.folder / "config.yaml").read_text()).train.batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first-draw", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=6.0, help="of pre-training")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10, 100])
    parser.add_argument("--weights", type=Path, help="a run of this script's pre-training, instead of a new one")
    parser.add_argument("--keep", type=Path, help="where the pre-trained run is to stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "transfer.json")
    parser.add_argument("--again", action="store_true", help="train nothing: ask today's rules on the facts of --out")
    args = parser.parse_args()
    cells: list[dict[str, Any]] = []
    if args.again:
        before = json.loads(args.out.read_text())
        cells = [judged(cell) for cell in before["cells"]]
        args.out.write_text(json.dumps(before | {"cells": cells, "advice_right": share_right(cells)}, indent=1) + "\n")
        print(f"the advice agrees with what won in {share_right(cells):.0%} of {len(cells)} cells")
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        weights = args.weights or pretrain(place, epochs=args.epochs).folder
        learned = json.loads((weights / "evaluation.json").read_text())["top1"]
        print(f"pre-training: {learned:.1%} of the first five classes", flush=True)
        if args.keep:
            shutil.copytree(weights, args.keep)
        images, labels = pixels("test")
        others = labels >= len(FIRST)
        write(place / "others", images[others], labels[others])
        for shots in args.shots:
            for seed in range(args.first_draw, args.first_draw + args.draws):
                cells.append(one_cell(place, weights, shots=shots, seed=seed))
                print(cells[-1], flush=True)
                args.out.write_text(json.dumps(result(cells, learned, int(others.sum())), indent=1) + "\n")
    print(f"the advice agrees with what won in {share_right(cells):.0%} of {len(cells)} cells")


def result(cells: list[dict[str, Any]], learned: float, test_images: int) -> dict[str, Any]:
    """The mean of each way over the draws with its 95 % interval, and each cell."""
    rows = {}
    for shots in sorted({cell["shots"] for cell in cells}):
        of = [cell for cell in cells if cell["shots"] == shots]
        rows[str(shots)] = {way: interval([cell[way] for cell in of]) for way in WAYS}
    return {
        "machine": facts(),
        "pretraining_accuracy": learned,
        "test_images": test_images,
        "rows": rows,
        "advice_right": share_right(cells),
        "cells": cells,
    }


def share_right(cells: list[dict[str, Any]]) -> float:
    """Share of the cells whose advice agrees with what won."""
    return statistics.mean(cell["advice_right"] for cell in cells)


def interval(values: list[float]) -> dict[str, float]:
    """Mean over the draws with its 95 % interval by Student's t; no interval for one draw."""
    mean = {"mean": round(statistics.mean(values), 4)}
    if len(values) < 2:
        return mean
    low, high = mean_interval(values)
    return mean | {"low": round(low, 4), "high": round(high, 4)}


if __name__ == "__main__":
    main()

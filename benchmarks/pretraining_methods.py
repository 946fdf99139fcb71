"""The methods of `vitrail pretrain` on Fashion-MNIST without its labels: frozen features, then fine-tuning with few labels.

    python benchmarks/pretraining_methods.py                              what is missing from results/pretraining_methods.json
    python benchmarks/pretraining_methods.py --method lejepa --seeds 0    one method, one seed
    python benchmarks/pretraining_methods.py --tune lejepa                and fine-tuning from its runs, beside from scratch

Each run is `python -m vitrail pretrain …` for `--minutes`, then `vitrail probe` on all 60,000 labels; beside them are random
weights of each method's backbone, and pixels. For few labels, so many images of each class are drawn by the seed and written
as a folder, and `vitrail train` has `--tune-minutes` with the weights of that seed's run, and without; what counts are the
10,000 test images. Recipes were chosen by k-NN of validation images, not on these (dev/LOG.md). Figures are written as soon
as they are there, so a script that was stopped goes on. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import accuracy
import machine
from vitrail.data.named import NAMED, find, read_arrays
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.knn import predict_knn

DATA = "fashion-mnist"
METHODS = ("lejepa", "dino", "mae", "simmim", "beit")
LABELS = (10, 100)
UNTRAINED = ("--train.steps", "1", "--optim.lr", "1e-9")
RESULTS = machine.RESULTS / "pretraining_methods.json"


def frozen_scores(run: Path) -> dict[str, Any]:
    """Accuracy of k-NN and of a linear probe on the test images, with 95 % intervals."""
    words = ["probe", str(run), DATA, "--json"]
    done = subprocess.run([sys.executable, "-m", "vitrail", *words], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    return {way: {name: found[way]["test"][name] for name in ("accuracy", "interval")} for way in ("knn", "probe")}


def pretrain(method: str, *, seed: int, options: tuple[str, ...], run: Path) -> dict[str, Any]:
    """Pre-train without labels and score the frozen features."""
    words = ("--method", method, "--train.seed", str(seed), "--train.compare", "false", *options)
    accuracy.vitrail("pretrain", DATA, *words, "--out", str(run))
    return {**frozen_scores(run), **accuracy.training(run / "metrics.jsonl"), **machine.facts()}


def pixel_scores() -> dict[str, Any]:
    """Accuracy of k-NN on the pixels themselves, by the rule that scores embeddings."""
    kind, folder = NAMED[DATA], find(DATA)
    parts = {}
    for part in ("train", "test"):
        images, labels = read_arrays(kind, folder, part)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).flatten(1).float() / 255
        parts[part] = LabelledEmbeddings(pixels, torch.as_tensor(labels).long())
    right = predict_knn(parts["train"], parts["test"].embeddings, device=torch.device("cpu")) == parts["test"].labels
    found = Accuracy(int(right.sum()), len(right))
    return {"knn": {"accuracy": found.value, "interval": list(found.interval)}, **machine.facts()}


def write_few(labels: int, *, seed: int, folder: Path) -> None:
    """Write `labels` training images of each class, drawn by the seed, and all test images, as a folder of PNG files."""
    kind, rng = NAMED[DATA], np.random.default_rng(seed)
    for part in ("train", "test"):
        images, classes = read_arrays(kind, find(DATA), part)
        chosen = range(len(classes))
        if part == "train":
            each = [rng.permutation(np.flatnonzero(np.asarray(classes) == k))[:labels] for k in range(len(kind.classes))]
            chosen = np.concatenate(each).tolist()
        for index in chosen:
            place = folder / part / str(int(classes[index]))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images[index]).squeeze()).save(place / f"{index}.png")


def fine_tune(weights: Path | None, data: Path, *, seed: int, minutes: float, run: Path) -> dict[str, Any]:
    """Train on few labels, from weights or by the recipe of the whole set; accuracy on the test images."""
    start = ("--recipe", DATA) if weights is None else ("--weights", str(weights))
    words = (*start, "--data.val_fraction", "0", "--minutes", str(minutes), "--train.seed", str(seed))
    accuracy.vitrail("train", str(data), *words, "--out", str(run))
    accuracy.vitrail("evaluate", str(run))
    evaluation = json.loads((run / "evaluation.json").read_text())
    return {"top1": evaluation["top1"], "interval": evaluation["top1_interval"], **accuracy.training(run / "metrics.jsonl")}


class Results:
    """Figures by path, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, keys: tuple[str, ...], function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the figures at a path, measured if they are missing."""
        place = self.values
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        if keys[-1] not in place:
            place[keys[-1]] = function()
            self.path.write_text(json.dumps(self.values, indent=1) + "\n")
        figures: dict[str, Any] = place[keys[-1]]
        print(f"{', '.join(keys)}: {shown(figures)}", flush=True)
        return figures


def shown(figures: dict[str, Any]) -> str:
    """Write the accuracies of some figures."""
    accuracies = {"accuracy": figures["top1"]} if "top1" in figures else {}
    accuracies |= {way: figures[way]["accuracy"] for way in ("knn", "probe") if way in figures}
    return ", ".join(f"{name} {value:.2%}" for name, value in accuracies.items())


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10, help="of each pre-training [10]")
    parser.add_argument("--tune", choices=METHODS, help="fine-tune from this method's runs with few labels")
    parser.add_argument("--tune-minutes", type=float, default=1, help="of each fine-tuning, and of each run from scratch [1]")
    parser.add_argument("--runs", type=Path, help="keep the run folders here, and fine-tune from those that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = Results(args.out)
    methods = args.method or ([args.tune] if args.tune else METHODS)
    results.values["command"] = shlex.join(
        ["vitrail", "pretrain", DATA, "--method", "METHOD", "--minutes", f"{args.minutes:g}"]
    )
    with tempfile.TemporaryDirectory() as temporary:
        runs = args.runs or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        results.measure(("pixels",), pixel_scores)
        for seed in args.seeds:
            for method in methods:
                for title, options in (("random weights", UNTRAINED), (method, ("--minutes", f"{args.minutes:g}"))):
                    name = f"random {method}" if title != method else method
                    run = runs / f"{name.replace(' ', '-')}-{seed}"
                    keys = ("frozen", name, str(seed))
                    results.measure(keys, partial(pretrain, method, seed=seed, options=options, run=run))
            if args.tune:
                measure_few(results, args.tune, seed=seed, minutes=args.tune_minutes, runs=runs, folder=Path(temporary))
    for method, seeds in results.values.get("frozen", {}).items():
        for way in ("knn", "probe"):
            values = [seeds[seed][way]["accuracy"] for seed in seeds]
            print(f"{method}, {way}: median {statistics.median(values):.2%} of {len(values)} seeds")


def measure_few(results: Results, method: str, *, seed: int, minutes: float, runs: Path, folder: Path) -> None:
    """Fine-tune with few labels from the seed's run of a method, and train from scratch."""
    for labels in LABELS:
        data = folder / f"few-{labels}-{seed}"
        for start, weights in (("from scratch", None), (method, runs / f"{method}-{seed}")):
            if weights is not None and not weights.exists():
                raise SystemExit(
                    f"{weights} is not there; give the folder of the runs, --runs, or measure them in the same call"
                )

            def tune(
                labels: int = labels, data: Path = data, start: str = start, weights: Path | None = weights
            ) -> dict[str, Any]:
                if not data.exists():
                    write_few(labels, seed=seed, folder=data)
                run = folder / f"{start.replace(' ', '-')}-{labels}-{seed}"
                return fine_tune(weights, data, seed=seed, minutes=minutes, run=run)

            results.measure(("few labels", str(labels), start, str(seed)), tune)


if __name__ == "__main__":
    main()

"""The methods of `vitrail pretrain` on Fashion-MNIST without its labels: frozen features, then fine-tuning with few labels.

    python benchmarks/pretraining_methods.py                              what is missing from results/pretraining_methods.json
    python benchmarks/pretraining_methods.py --method lejepa --seeds 0    one method, one seed
    python benchmarks/pretraining_methods.py --tune lejepa                and fine-tuning from its runs, beside from scratch

How many steps `--minutes` are is measured first, for each method on all cores with nothing beside it. Then each run is
`python -m vitrail pretrain …` for so many steps, `--together` of them at a time with an equal part of the cores, and
`vitrail probe` on all 60,000 labels; beside them are random weights of each backbone, and pixels. Other work on the machine
makes these runs slower, and not worse. For few labels, so many images of each class are drawn by the seed and written as a
folder, and `vitrail train` has `--tune-minutes` with the weights of that seed's run, and without; nothing else should run
meanwhile. What counts are the 10,000 test images. Recipes were chosen by k-NN of validation images, not on these
(dev/LOG.md). Figures are written as soon as they are there, so a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from vitrail.evaluate.knn import knn

DATA = "fashion-mnist"
METHODS = ("lejepa", "dino", "mae", "simmim", "beit")
LABELS = (10, 100)
UNTRAINED = ("--train.steps", "1", "--optim.lr", "1e-9")
BACKBONES = {"S+/4": "lejepa", "Ti/4": "mae"}
"""Backbones of the recipes, each with a method that has it."""
PACE_MINUTES = 1.0
RESULTS = machine.RESULTS / "pretraining_methods.json"


def frozen_scores(run: Path, *, data: str = DATA) -> dict[str, Any]:
    """Accuracy of k-NN and of a linear probe on the test images, with 95 % intervals."""
    words = ["probe", str(run), data, "--json"]
    done = subprocess.run([sys.executable, "-m", "vitrail", *words], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    return {way: {name: found[way]["test"][name] for name in ("accuracy", "interval")} for way in ("knn", "probe")}


def run_method(method: str, *, seed: int, options: tuple[str, ...], run: Path, data: str = DATA) -> None:
    """Pre-train without labels."""
    words = ("--method", method, "--train.seed", str(seed), "--train.compare", "false", "--no-report", *options)
    accuracy.vitrail("pretrain", data, *words, "--out", str(run))


def measure_pace(method: str, *, runs: Path) -> dict[str, Any]:
    """Steps a second on all cores, without the start."""
    run = runs / f"pace-{method}"
    run_method(method, seed=0, options=("--minutes", f"{PACE_MINUTES:g}"), run=run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reports = [line for line in lines if "images_per_s" in line]
    first, last = reports[len(reports) // 4], reports[-1]
    return {"steps_per_s": (last["step"] - first["step"]) / (last["seconds"] - first["seconds"]), **machine.facts()}


def pretrain(method: str, *, seed: int, options: tuple[str, ...], run: Path) -> dict[str, Any]:
    """Pre-train without labels and score the frozen features."""
    run_method(method, seed=seed, options=options, run=run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {**frozen_scores(run), "steps": max(line.get("step", 0) for line in lines), **machine.facts()}


def pixel_scores() -> dict[str, Any]:
    """Accuracy of k-NN on the pixels themselves, by the rule that scores embeddings."""
    kind, folder = NAMED[DATA], find(DATA)
    parts = {}
    for part in ("train", "test"):
        images, labels = read_arrays(kind, folder, part)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).flatten(1).float() / 255
        parts[part] = LabelledEmbeddings(pixels, torch.as_tensor(labels).long())
    found = knn(parts["train"], parts["test"])
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
    view = ("--model.img_size", "28", "--model.in_channels", "1")  # as the weights have it
    start = ("--recipe", DATA, *view) if weights is None else ("--weights", str(weights))
    words = (*start, "--data.val_fraction", "0", "--minutes", str(minutes), "--train.seed", str(seed))
    accuracy.vitrail("train", str(data), *words, "--out", str(run))
    accuracy.vitrail("evaluate", str(run))
    evaluation = json.loads((run / "evaluation.json").read_text())
    scores = {"top1": evaluation["top1"], "interval": evaluation["top1_interval"]}
    return {**scores, **accuracy.training(run / "metrics.jsonl"), **machine.facts()}


class Results:
    """Figures by path, in a file that is written after each; for many threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.lock = threading.Lock()

    def measure(self, keys: tuple[str, ...], function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the figures at a path, measured if they are missing."""
        with self.lock:
            place = self.values
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            found: dict[str, Any] | None = place.get(keys[-1])
        if found is None:
            found = function()
            with self.lock:
                place[keys[-1]] = found
                self.path.write_text(json.dumps(self.values, indent=1) + "\n")
        print(f"{', '.join(keys)}: {shown(found)}", flush=True)
        return found


def shown(figures: dict[str, Any]) -> str:
    """Write the accuracies of some figures."""
    if "steps_per_s" in figures:
        return f"{figures['steps_per_s']:.2f} steps a second"
    accuracies = {"accuracy": figures["top1"]} if "top1" in figures else {}
    accuracies |= {way: figures[way]["accuracy"] for way in ("knn", "probe") if way in figures}
    return ", ".join(f"{name} {value:.2%}" for name, value in accuracies.items())


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10, help="of each pre-training, on all cores [10]")
    parser.add_argument("--together", type=int, default=2, metavar="N", help="pre-training runs at a time [2]")
    parser.add_argument("--tune", choices=METHODS, help="fine-tune from this method's runs with few labels")
    parser.add_argument("--tune-minutes", type=float, default=1, help="of each fine-tuning, and of each run from scratch [1]")
    parser.add_argument("--runs", type=Path, help="keep the run folders here, and fine-tune from those that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    results = Results(args.out)
    methods = args.method or ([args.tune] if args.tune else METHODS)
    results.values["minutes"] = args.minutes
    with tempfile.TemporaryDirectory() as temporary:
        runs = args.runs or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        results.measure(("pixels",), pixel_scores)
        measure_frozen(results, methods, args, runs)
        for seed in args.seeds if args.tune else ():
            measure_few(results, args.tune, seed=seed, minutes=args.tune_minutes, runs=runs, folder=Path(temporary))
    for method, seeds in results.values.get("frozen", {}).items():
        for way in ("knn", "probe"):
            values = [seeds[seed][way]["accuracy"] for seed in seeds]
            print(f"{method}, {way}: median {statistics.median(values):.2%} of {len(values)} seeds")


def measure_frozen(results: Results, methods: Sequence[str], args: argparse.Namespace, runs: Path) -> None:
    """Pre-train and score frozen features, several runs at a time."""
    steps = {}
    for method in methods:
        pace = results.measure(("pace", method), partial(measure_pace, method, runs=runs))
        steps[method] = round(60 * args.minutes * pace["steps_per_s"])
    os.environ["OMP_NUM_THREADS"] = str(max(1, machine.cores() // args.together))  # of the runs
    with ThreadPoolExecutor(args.together) as pool:
        waiting = []
        for seed in args.seeds:
            for method in methods:
                keys, run = ("frozen", method, str(seed)), runs / f"{method}-{seed}"
                options = ("--train.steps", str(steps[method]))
                waiting.append(
                    pool.submit(results.measure, keys, partial(pretrain, method, seed=seed, options=options, run=run))
                )
            for name, method in BACKBONES.items():
                keys, run = ("frozen", f"random {name}", str(seed)), runs / f"random-{method}-{seed}"
                waiting.append(
                    pool.submit(results.measure, keys, partial(pretrain, method, seed=seed, options=UNTRAINED, run=run))
                )
        for one in waiting:
            one.result()
    del os.environ["OMP_NUM_THREADS"]


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

"""What the recipes reach: trains with each of three seeds as a user would, and evaluates on the whole test split.

    python benchmarks/accuracy.py                                     every row that is missing from results/accuracy.json
    python benchmarks/accuracy.py --row fashion-mnist-2min --again    one row, measured anew
    python benchmarks/accuracy.py --folder PHOTOS --name clothing     a row for a folder of images

Every run is `python -m vitrail train …` and `vitrail evaluate` in a process of its own, and its figures are written as soon
as they are there: a script that was stopped goes on where it was. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine


@dataclass(frozen=True)
class Row:
    """One way to train."""

    name: str
    data: str
    options: tuple[str, ...] = ()

    def command(self, data: str, *more: str) -> list[str]:
        """The words after `vitrail`."""
        return ["train", data, *self.options, *more]


ROWS = (
    Row("fashion-sample", "fashion-sample"),
    Row("fashion-mnist-2min", "fashion-mnist", ("--minutes", "2")),
    Row("fashion-mnist-5min", "fashion-mnist", ("--minutes", "5")),
    Row("cifar10", "cifar10"),
)


def vitrail(*words: str) -> None:
    """One command of the package, as a user gives it; raises CalledProcessError where it fails."""
    print("$ " + shlex.join(["vitrail", *words]), file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "vitrail", *words], check=True, stdout=sys.stderr)


def measure(row: Row, *, seed: int) -> dict[str, Any]:
    """One seed of a row: the accuracy on the test split with its 95 % interval, and what training took."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.perf_counter()
        vitrail(*row.command(row.data, "--train.seed", str(seed), "--out", str(run)))
        wall_s = time.perf_counter() - start
        vitrail("evaluate", str(run))
        evaluation = json.loads((run / "evaluation.json").read_text())
        return {
            "top1": evaluation["top1"],
            "interval": evaluation["top1_interval"],
            "test_images": evaluation["count"],
            **training(run / "metrics.jsonl"),
            "wall_s": round(wall_s, 1),
            **machine.facts(),
        }


def training(metrics: Path) -> dict[str, float]:
    """What a run's metrics say of its training: seconds, steps, and the median of the images a second."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    reports = [line for line in lines if "images_per_s" in line]
    return {
        "train_s": round(reports[-1]["seconds"], 1),
        "steps": reports[-1]["step"],
        "images_per_s": round(statistics.median(report["images_per_s"] for report in reports), 1),
    }


def middle(seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The seed whose accuracy is the median (the lower of the two middle ones of an even number)."""
    return next(s for s in seeds.values() if s["top1"] == statistics.median_low(x["top1"] for x in seeds.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description="What the recipes reach, with three seeds each.")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="default: all of them")
    parser.add_argument("--folder", type=Path, help="measure a folder of images instead")
    parser.add_argument("--name", help="the folder's name in the results; a path is not written there")
    parser.add_argument(
        "--option", action="append", default=[], help="more words for the folder's training: --option='--minutes 10'"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "accuracy.json")
    args = parser.parse_args()
    if (args.folder is None) != (args.name is None):
        parser.error("--folder and --name go together")

    rows = [row for row in ROWS if row.name in (args.row or [r.name for r in ROWS])]
    if args.folder:
        rows = [Row(args.name, str(args.folder), tuple(shlex.split(" ".join(args.option))))]
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for row in rows:
        shown = shlex.join(["vitrail", *row.command(args.name.upper() if args.folder else row.data)])
        entry = results.get(row.name, {})
        if entry.get("command") != shown or args.again:
            entry = {"command": shown, "seeds": {}}
        for seed in args.seeds:
            if str(seed) not in entry["seeds"]:
                entry["seeds"][str(seed)] = measure(row, seed=seed)
                entry["median"] = middle(entry["seeds"])["top1"]
                results[row.name] = entry
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{row.name}, seed {seed}: {entry['seeds'][str(seed)]['top1']:.2%}", flush=True)
        print(f"{row.name}: median {entry['median']:.2%} of {len(entry['seeds'])} seeds", flush=True)


if __name__ == "__main__":
    main()

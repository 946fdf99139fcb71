"""Training in fp8 beside bf16: the loss over 500 steps, with the same seeds.

    python benchmarks/fp8.py                 the embedded sample; writes results/fp8.json
    python benchmarks/fp8.py --steps 50 --seeds 1 --out quick.json
    python benchmarks/fp8.py --device cuda

A CPU emulates fp8: numbers are rounded as on a GPU, and nothing is faster; what a GPU gains, part fp8 of gpu.py measures. The
difference between two seeds in bf16 is what chance does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import machine
import vitrail

PARTS = 10
"""Parts of a run whose mean losses are compared."""


def curve(precision: str, *, seed: int, steps: int, device: str) -> dict[str, Any]:
    """Mean loss in each part of a run of the recipe for the sample, and its test accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        train = {"steps": steps, "precision": precision, "seed": seed, "device": device, "eval_every": 0}
        run = vitrail.train("fashion-sample", out=Path(folder, "run"), train=train)
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses: list[float] = []  # of each step: a line holds the mean of those since the line before
    for line in lines:
        if "loss" in line:
            losses += [line["loss"]] * (line["step"] - len(losses))
    edges = [part * steps // PARTS for part in range(PARTS + 1)]
    means = [statistics.mean(losses[first:last]) for first, last in itertools.pairwise(edges)]
    return {"loss": [round(mean, 4) for mean in means], "test_accuracy": round(run.evaluation.headline.value, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "fp8.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.facts(), "steps": args.steps, "runs": {}}
    for seed in range(args.seeds):
        for precision in ("bf16", "fp8"):
            row = curve(precision, seed=seed, steps=args.steps, device=args.device)
            result["runs"].setdefault(precision, []).append(row)
            print(f"seed {seed}, {precision}: {row}")
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

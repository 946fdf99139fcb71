"""Photographs: half an hour without their labels and then fine-tuning, beside training from scratch for the same time in all.

    python benchmarks/pretraining_photos.py PHOTOS --name clothing                    what is missing from the results
    python benchmarks/pretraining_photos.py PHOTOS --name clothing --method lejepa    one method, and from scratch

Each is the command line as a user types it: `vitrail pretrain PHOTOS --method M --minutes 30` and
`vitrail train PHOTOS --weights RUN --minutes 10`, beside `vitrail train PHOTOS --minutes 40`. Frozen features are scored by
`vitrail probe`. The whole test split is scored, one seed. Nothing else should run on the machine meanwhile. Settings were
chosen on validation images (dev/LOG.md).
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import accuracy
import machine
from pretraining_methods import METHODS, Results, frozen_scores, run_method

FROM_SCRATCH = "from scratch"


def pretrain(method: str, photos: Path, *, minutes: float, seed: int, run: Path) -> dict[str, Any]:
    """Pre-train without labels, and score the frozen features on the test images."""
    run_method(method, data=str(photos), seed=seed, options=("--minutes", f"{minutes:g}"), run=run)
    return {**frozen_scores(run, data=str(photos)), **accuracy.training(run / "metrics.jsonl"), **machine.facts()}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of images with train, validation and test")
    parser.add_argument("--name", required=True, help="the folder's name in the results; a path is not written there")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: lejepa and mae")
    parser.add_argument("--minutes", type=float, default=30, help="without labels [30]")
    parser.add_argument("--tune-minutes", type=float, default=10, help="of fine-tuning [10]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="keep the runs without labels here, and fine-tune from those that are there")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "pretraining_photos.json")
    args = parser.parse_args()
    results = Results(args.out)
    results.values |= {"minutes": args.minutes, "tune_minutes": args.tune_minutes}
    with tempfile.TemporaryDirectory() as temporary:
        runs = args.runs or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        for method in args.method or ("lejepa", "mae"):
            run = runs / f"{args.name}-{method}-{args.seed}"
            found = partial(pretrain, method, args.photos, minutes=args.minutes, seed=args.seed, run=run)
            results.measure((args.name, "frozen", method), found)
            row = accuracy.Row(args.name, str(args.photos), ("--weights", str(run), "--minutes", f"{args.tune_minutes:g}"))
            results.measure((args.name, "trained", method), partial(accuracy.measure, row, seed=args.seed))
        whole = ("--minutes", f"{args.minutes + args.tune_minutes:g}")
        row = accuracy.Row(args.name, str(args.photos), whole)
        results.measure((args.name, "trained", FROM_SCRATCH), partial(accuracy.measure, row, seed=args.seed))


if __name__ == "__main__":
    main()

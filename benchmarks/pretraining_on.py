"""What becomes of a supervised model that is pre-trained on its own images, with each method: does its accuracy fall?

    python benchmarks/pretraining_on.py                   all methods; writes results/pretraining_on.json
    python benchmarks/pretraining_on.py --method lejepa   one of them; the others keep their figures

The start is a ViT with patches of 4 px that `vitrail train` had for two minutes, which every method takes. Then
`vitrail pretrain --weights RUN` has `--minutes` with each, at the rate and with the warm-up of the heads that are the default
with weights. The signal is k-NN accuracy on the validation images, whose labels nothing learns from after the start.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import accuracy
import machine
from pretraining_methods import METHODS, Results

DATA = "fashion-mnist"
MODEL = ("--model.name", "Ti/4", "--model.embed_dim", "128", "--model.depth", "4", "--model.num_heads", "4")
POOL = ("--model.pool", "avg", "--model.class_token", "false")


def go_on(method: str, *, start: Path, minutes: float, run: Path) -> dict[str, Any]:
    """Pre-train from the start with one method. Return its k-NN accuracies."""
    words = ("--method", method, "--weights", str(start), "--minutes", f"{minutes:g}")
    accuracy.vitrail("pretrain", DATA, *words, "--train.eval_every", "0.2", "--no-report", "--out", str(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [line["val_knn_accuracy"] for line in lines if "val_knn_accuracy" in line]
    evaluation = json.loads((run / "evaluation.json").read_text())
    stopped = evaluation.get("stopped")
    return {
        "images": json.loads((run / "provenance.json").read_text())["images"]["val"],
        "start": scores[0],
        "lowest": min(scores),
        "last": scores[-1],
        "evaluations": len(scores),
        "steps": max(line.get("step", 0) for line in lines),
        "stopped": stopped and stopped["cause"],
        **machine.facts(),
    }


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all of them")
    parser.add_argument("--minutes", type=float, default=5, help="of each method [5]")
    parser.add_argument("--start-minutes", type=float, default=2, help="of the supervised run [2]")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="methods at a time, with a part of the cores [1]")
    parser.add_argument("--runs", type=Path, help="keep the run folders here, and go on from the start that is there")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "pretraining_on.json")
    args = parser.parse_args()
    results = Results(args.out)
    results.values |= {"minutes": args.minutes, "together": args.together}
    with tempfile.TemporaryDirectory() as temporary:
        runs = args.runs or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        start = runs / "start"
        if not start.exists():
            words = ("--recipe", DATA, *MODEL, *POOL, "--minutes", f"{args.start_minutes:g}", "--no-report")
            accuracy.vitrail("train", DATA, *words, "--out", str(start))
        os.environ["OMP_NUM_THREADS"] = str(max(1, machine.cores() // args.together))
        with ThreadPoolExecutor(args.together) as pool:
            calls = [
                pool.submit(
                    results.measure,
                    ("methods", method),
                    partial(go_on, method, start=start, minutes=args.minutes, run=runs / f"on-{method}"),
                )
                for method in args.method or METHODS
            ]
            for call in calls:
                call.result()


if __name__ == "__main__":
    main()

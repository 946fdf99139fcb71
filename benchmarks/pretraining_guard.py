"""How often the guard of pre-training catches a planted collapse, and how often it stops a healthy run.

    python benchmarks/pretraining_guard.py                          all cases; writes results/pretraining_guard.json
    python benchmarks/pretraining_guard.py --case "planted: dino"   those that begin so; the others keep their figures

Planted: LeJEPA without SIGReg, at a rate at which the embedding follows the projections; DINO without centring, with a teacher
close to its student. Healthy: LeJEPA, MAE and DINO with what keeps them from it. A tiny model on the embedded sample, a few
seconds of one core for each run.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import machine
import vitrail

BATCH = 32
MODEL = {"name": "Ti/7", "embed_dim": 32, "depth": 2, "num_heads": 2, "pool": "avg", "class_token": False}
LEJEPA = {"projector_dims": [32], "projector_out": 8, "directions": 32}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
DINO = {"prototypes": 64, "hidden_dim": 64, "bottleneck_dim": 32, "freeze_last_epochs": 0}


@dataclass(frozen=True)
class Case:
    """Settings of runs, and their length."""

    steps: int
    rate: float
    settings: dict[str, Any]


CASES = {
    "planted: lejepa without SIGReg": Case(40, 2.5, {"method": "lejepa", "lejepa": LEJEPA | {"sigreg_weight": 0.0}}),
    "planted: dino without centring": Case(
        400, 0.1, {"method": "dino", "dino": DINO | {"center_momentum": 1.0, "teacher_momentum": 0.5}}
    ),
    "healthy: lejepa": Case(40, 0.2, {"method": "lejepa", "lejepa": LEJEPA | {"sigreg_weight": 0.05}}),
    "healthy: mae": Case(40, 0.2, {"method": "mae", "mae": DECODER}),
    "healthy: dino": Case(400, 0.1, {"method": "dino", "dino": DINO | {"center_momentum": 0.5, "teacher_momentum": 0.9}}),
}


def train(case: Case, *, seed: int, data: str, folder: Path) -> vitrail.Run:
    """Run one case from one seed."""
    length = {"steps": case.steps, "batch_size": BATCH, "eval_every": 0, "seed": seed, "compare": False}
    return vitrail.pretrain(
        data,
        out=folder,
        model=MODEL,
        views={"local_crops": 0},
        guard={"images": 256},
        data={"workers": 0, "val_fraction": 0.03},
        train=length | {"device": "cpu", "precision": "fp32"},
        console=Console(file=io.StringIO()),
        optim={"name": "adamw", "lr": case.rate},
        **case.settings,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--case", default="", help="the beginning of a case's name; default: all")
    parser.add_argument("--data", default="fashion-sample")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "pretraining_guard.json")
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name, case in CASES.items():
        if not name.startswith(args.case):
            continue
        stopped = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = train(case, seed=seed, data=args.data, folder=Path(folder) / "run")
            if run.stopped is not None:
                stopped.append(run.stopped)
                print(f"  seed {seed}: step {run.stopped.step} of {case.steps}, {run.stopped.cause}", flush=True)
        early = sum(each.step <= case.steps / 5 for each in stopped)
        print(f"{name}: {len(stopped)} of {args.seeds} stopped, {early} of them within 20 % of the run", flush=True)
        causes = sorted({each.cause for each in stopped})
        counts = {"seeds": args.seeds, "stopped": len(stopped), "within_fifth": early}
        result[name] = {**counts, "causes": causes, **machine.facts()}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

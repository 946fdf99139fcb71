"""How often the guard of pre-training catches a planted collapse, and how often it stops a healthy run.

    python benchmarks/pretraining_guard.py --seeds 10

Planted: LeJEPA without SIGReg, at a rate at which the embedding follows the projections. Healthy: LeJEPA and MAE as they are.
Each run takes 40 steps of a tiny model on the embedded sample, a few seconds of one core.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

import vitrail

STEPS, BATCH = 40, 32
MODEL = {"name": "Ti/7", "embed_dim": 32, "depth": 2, "num_heads": 2, "pool": "avg", "class_token": False}
LEJEPA = {"projector_dims": [32], "projector_out": 8, "directions": 32}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
CASES: dict[str, dict[str, Any]] = {
    "planted: lejepa without SIGReg": {"method": "lejepa", "lejepa": LEJEPA | {"sigreg_weight": 0.0}, "optim": {"lr": 2.5}},
    "healthy: lejepa": {"method": "lejepa", "lejepa": LEJEPA | {"sigreg_weight": 0.05}, "optim": {"lr": 0.2}},
    "healthy: mae": {"method": "mae", "mae": DECODER, "optim": {"lr": 0.2}},
}


def train(case: dict[str, Any], *, seed: int, data: str, folder: Path) -> vitrail.Run:
    """Run one case from one seed."""
    length = {"steps": STEPS, "batch_size": BATCH, "eval_every": 0, "seed": seed, "compare": False}
    return vitrail.pretrain(
        data,
        out=folder,
        model=MODEL,
        views={"local_crops": 0},
        guard={"images": 256},
        data={"workers": 0, "val_fraction": 0.03},
        train=length | {"device": "cpu", "precision": "fp32"},
        console=Console(file=io.StringIO()),
        **{**case, "optim": {"name": "adamw", **case["optim"]}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", default="fashion-sample")
    args = parser.parse_args()
    for name, case in CASES.items():
        stopped = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                run = train(case, seed=seed, data=args.data, folder=Path(folder) / "run")
            if run.stopped is not None:
                stopped.append(run.stopped)
                print(f"  seed {seed}: step {run.stopped.step} of {STEPS}, {run.stopped.cause}", flush=True)
        early = sum(each.step <= STEPS / 5 for each in stopped)
        print(f"{name}: {len(stopped)} of {args.seeds} stopped, {early} of them within 20 % of the run", flush=True)


if __name__ == "__main__":
    main()

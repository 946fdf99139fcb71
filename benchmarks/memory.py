"""Memory that training takes, beside what `vitrail show` predicts.

    python benchmarks/memory.py                              every case; writes results/memory.json
    python benchmarks/memory.py --case Ti-16 --out quick.json

Each measurement is a process of its own that takes real training steps (vitrail.train.step with AdamW, malloc set as
`vitrail train` sets it) on one batch in memory. What counts is the greatest resident size of the process over what it had
after its imports and a step of a toy, which loads the libraries' code. Needs Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import machine
from vitrail.settings import OptimConfig, ViTConfig
from vitrail.settings.families import parse_name

if TYPE_CHECKING:
    from collections.abc import Callable

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Case:
    """One model and its batch; 224 px and 1000 classes."""

    name: str
    batch_size: int
    checkpointing: tuple[bool, ...] = (False, True)
    limit_gb: float | None = None
    """What it has to stay within."""


CASES = {
    "Ti-16": Case("Ti/16", 16),
    "S-16": Case("S/16", 8),
    "B-16": Case("B/16", 8),
    "L-16": Case("L/16", 8, checkpointing=(True,), limit_gb=12.0),
}
TOY = ViTConfig(img_size=32, patch_size=16, num_classes=10, embed_dim=64, depth=1, num_heads=1)


def measure(vit: ViTConfig, batch_size: int, precision: Precision, checkpointing: bool, steps: int) -> int:
    """Greatest resident size in bytes over the baseline, in this process."""
    from vitrail.models.device import keep_freed_memory

    keep_freed_memory(not checkpointing)
    stepping(TOY, 2, precision, checkpointing)()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: imports have one of their own
    before = resident("VmRSS")
    step = stepping(vit, batch_size, precision, checkpointing)
    for _ in range(steps):
        step()
    return resident("VmHWM") - before


def stepping(vit: ViTConfig, batch_size: int, precision: Precision, checkpointing: bool) -> Callable[[], object]:
    """A training step on a batch of noise."""
    import torch
    from torch.nn import functional as F

    from vitrail.data.batch import Batch
    from vitrail.models import ViT
    from vitrail.models.device import autocast_dtype
    from vitrail.settings import Preprocessing, pair
    from vitrail.tasks.classify import Classify
    from vitrail.train.optim import build_optimizers
    from vitrail.train.step import Step

    torch.manual_seed(0)
    optim = OptimConfig()
    model = ViT(vit).train()
    model.checkpointing = checkpointing
    labels = torch.randint(vit.num_classes, (batch_size,))
    batch = Batch(
        images=torch.randn(batch_size, vit.in_channels, *pair(vit.img_size)),
        targets=F.one_hot(labels, vit.num_classes).float(),
        labels=labels,
        indexes=torch.arange(batch_size),
    )
    how = Preprocessing(img_size=pair(vit.img_size), in_channels=vit.in_channels, mean=(0.0,), std=(1.0,))
    move = Step(
        Classify(model, preprocessing=how),
        build_optimizers(model, optim, batch_size=batch_size),
        autocast_dtype=autocast_dtype(precision, torch.device("cpu")),
        clip_norm=optim.clip_norm,
    )
    return lambda: move(batch)


def resident(field: str) -> int:
    """Bytes that Linux tells of this process."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")]
    return 1024 * int(line.split()[1])


def predicted(vit: ViTConfig, batch_size: int, precision: Precision, checkpointing: bool) -> int:
    """What `vitrail show` says."""
    from vitrail.models.describe import training_peaks

    peak = training_peaks(vit, batch_size=batch_size)[checkpointing]
    assert peak is not None
    return peak.bf16 if precision == "bf16" else peak.fp32


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory that training takes, beside what `vitrail show` predicts.")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--rounds", type=int, default=1, help="processes for each figure")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "memory.json")
    args = parser.parse_args()

    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    spawn = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {"machine": machine.facts(), "rounds": args.rounds, "steps": args.steps, "cases": []}
    for name in args.case or CASES:
        case = CASES[name]
        vit = ViTConfig(**parse_name(case.name))
        for precision, checkpointing in itertools.product(precisions, case.checkpointing):
            peaks = []
            for _ in range(args.rounds):
                with ProcessPoolExecutor(1, mp_context=spawn) as process:
                    job = process.submit(measure, vit, case.batch_size, precision, checkpointing, args.steps)
                    peaks.append(job.result())
            expected, peak = predicted(vit, case.batch_size, precision, checkpointing), statistics.median(peaks)
            row = {
                "model": case.name,
                "batch_size": case.batch_size,
                "precision": precision,
                "checkpointing": checkpointing,
                "predicted_mb": round(expected / 1e6),
                "measured_mb": {key: round(of(peaks) / 1e6) for key, of in SUMMARY.items()},
                "ratio": round(expected / peak, 3),
                "limit_gb": case.limit_gb,
            }
            result["cases"].append(row)
            print(row, file=sys.stderr)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    worst = max(abs(row["ratio"] - 1) for row in result["cases"])
    print(f"predictions are within {100 * worst:.0f} % of what was measured")
    for row in result["cases"]:
        if row["limit_gb"]:
            print(f"{row['model']} {row['precision']}: {row['measured_mb']['max'] / 1e3:.2f} of {row['limit_gb']} GB")


SUMMARY: dict[str, Callable[[list[int]], float]] = {"median": statistics.median, "min": min, "max": max}

if __name__ == "__main__":
    main()

"""A training step of ours beside timm's same model, in interleaved rounds.

    python benchmarks/train_step.py                    both models; writes results/train_step.json
    python benchmarks/train_step.py --case vit-28 --rounds 3 --out quick.json

A step is forward, cross-entropy, backward, AdamW and clearing the gradients, on the same synthetic images in memory. timm's
runs under bf16 autocast with torch.optim.AdamW(fused=True); ours is the step that vitrail.train takes. Each contender has a
process of its own, so that no one's settings reach another; in a round they run one after the other, never at once, and the
order turns from round to round. What counts is the ratio within a round: its median, least and greatest are reported.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import machine
from vitrail.bench.processes import Call, Worker, end_all
from vitrail.bench.rounds import interleave, ratios, summary
from vitrail.bench.training import batch_of, our_step, plain_step
from vitrail.data.batch import Batch
from vitrail.models import ViT
from vitrail.models.device import keep_freed_memory
from vitrail.settings import OptimConfig, ViTConfig, pair


@dataclass(frozen=True)
class Case:
    """One model and its batch."""

    title: str
    vit: ViTConfig
    batch_size: int


CASES = {
    "Ti-16-224": Case("Ti/16, 224 px, batch 32", ViTConfig(embed_dim=192, depth=12, num_heads=3), 32),
    "vit-28": Case(
        "28 px grey, patch 4, width 192, 6 blocks, batch 256",
        ViTConfig(img_size=28, patch_size=4, in_channels=1, num_classes=10, embed_dim=192, depth=6, num_heads=3),
        256,
    ),
    "smoke": Case(
        "a toy, to try the script",
        ViTConfig(img_size=8, patch_size=4, in_channels=1, num_classes=4, embed_dim=16, depth=1, num_heads=2),
        4,
    ),
}
OPTIM = OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=None)


def synthetic(case: Case) -> Batch:
    """The images and labels that every contender gets."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch_size, case.vit.in_channels, *pair(case.vit.img_size), generator=g)
    return batch_of(images, case.vit.num_classes)


def theirs(vit: ViTConfig, batch: Batch, *, compiled: bool, dtype: torch.dtype | None) -> Call:
    """timm's model with fused AdamW, under autocast in `dtype`."""
    import timm

    model: torch.nn.Module = timm.models.VisionTransformer(
        img_size=vit.img_size,
        patch_size=vit.patch_size,
        in_chans=vit.in_channels,
        num_classes=vit.num_classes,
        embed_dim=vit.embed_dim,
        depth=vit.depth,
        num_heads=vit.num_heads,
    )
    return plain_step(model.train(), batch, dtype=dtype, compiled=compiled)


def ours(vit: ViTConfig, batch: Batch, *, compiled: bool, dtype: torch.dtype | None) -> Call:
    """Our model, through the very step that vitrail.train takes."""
    keep_freed_memory()
    return our_step(ViT(vit).train(), batch, dtype=dtype, optim=OPTIM, compiled=compiled)


CONTENDERS: dict[str, tuple[Callable[..., Call], bool]] = {
    "timm": (theirs, False),
    "timm compiled": (theirs, True),
    "vitrail": (ours, False),
    "vitrail compiled": (ours, True),
}
RATIOS = list(itertools.product(("vitrail", "vitrail compiled"), ("timm", "timm compiled")))


def build(contender: str, case: Case, dtype: torch.dtype | None) -> Call:
    """The step of a contender, in its own process."""
    step, compiled = CONTENDERS[contender]
    return step(case.vit, synthetic(case), compiled=compiled, dtype=dtype)


def measure(
    case: Case,
    *,
    rounds: int,
    steps: int,
    warmup: int,
    threads: int,
    dtype: torch.dtype | None = torch.bfloat16,
    names: Sequence[str] = tuple(CONTENDERS),
) -> dict[str, Any]:
    """Images a second of some contenders, and the ratios within the rounds."""
    first: dict[str, float] = {}

    def show(seconds: dict[str, float]) -> None:
        speeds = (f"{name} {steps * case.batch_size / taken:.1f}" for name, taken in seconds.items())
        print(f"  {', '.join(speeds)}", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        stack.callback(lambda: end_all(workers.values()))
        for name in names:
            workers[name] = Worker(partial(build, name, case, dtype), threads=threads)
            workers[name].built()
            first[name] = workers[name].first().seconds
            workers[name].take(warmup)
            print(f"  {name}: ready, first step {first[name]:.1f} s", file=sys.stderr)
        turns = {name: partial(worker.take, steps) for name, worker in workers.items()}
        seconds = interleave(turns, least=rounds, on_round=show)
    speeds = {name: [steps * case.batch_size / taken for taken in values] for name, values in seconds.items()}
    return {
        "title": case.title,
        "batch_size": case.batch_size,
        "rounds": rounds,
        "steps_a_round": steps,
        "images_per_s": {name: summary(speeds[name]) for name in names},
        "first_step_s": {name: round(first[name], 2) for name in names},
        "ratios": {f"{a} / {b}": summary(ratios(speeds[a], speeds[b])) for a, b in RATIOS if {a, b} <= set(names)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step of ours beside timm's same model.")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all but smoke")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="steps of each contender in a round")
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not counted, after the first")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "train_step.json")
    args = parser.parse_args()

    result: dict[str, Any] = {"machine": {**machine.facts("timm"), "threads": args.threads}, "cases": {}}
    for name in args.case or [name for name in CASES if name != "smoke"]:
        case = CASES[name]
        print(case.title, file=sys.stderr)
        result["cases"][name] = measure(case, rounds=args.rounds, steps=args.steps, warmup=args.warmup, threads=args.threads)
        for ratio, value in result["cases"][name]["ratios"].items():
            print(f"{name}: {ratio} = {value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

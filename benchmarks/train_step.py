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
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
from vitrail.settings import OptimConfig, Preprocessing, ViTConfig, pair

if TYPE_CHECKING:
    from vitrail.data.batch import Batch

Step = Callable[[], None]


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
    import torch
    from torch.nn import functional as F

    from vitrail.data.batch import Batch
    from vitrail.settings import pair

    g = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch_size, case.vit.in_channels, *pair(case.vit.img_size), generator=g)
    labels = torch.randint(case.vit.num_classes, (case.batch_size,), generator=g)
    targets = F.one_hot(labels, case.vit.num_classes).float()
    return Batch(images=images, targets=targets, labels=labels, indexes=torch.arange(case.batch_size))


def theirs(vit: ViTConfig, batch: Batch, *, compiled: bool) -> Step:
    """timm's model under bf16 autocast with fused AdamW."""
    import timm
    import torch
    from torch.nn import functional as F

    model: torch.nn.Module = timm.models.VisionTransformer(
        img_size=vit.img_size,
        patch_size=vit.patch_size,
        in_chans=vit.in_channels,
        num_classes=vit.num_classes,
        embed_dim=vit.embed_dim,
        depth=vit.depth,
        num_heads=vit.num_heads,
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIM.lr, betas=OPTIM.betas, weight_decay=OPTIM.weight_decay, fused=True
    )
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(forward(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(vit: ViTConfig, batch: Batch, *, compiled: bool) -> Step:
    """Our model, through the very step that vitrail.train takes."""
    import torch

    from vitrail.models import ViT
    from vitrail.models.device import keep_freed_memory
    from vitrail.tasks.classify import Classify
    from vitrail.train.optim import build_optimizers
    from vitrail.train.step import Step as Move

    keep_freed_memory()
    model = ViT(vit).train()
    if compiled:
        for block in model.blocks:
            block.compile()
    how = Preprocessing(img_size=pair(vit.img_size), in_channels=vit.in_channels, mean=(0.0,), std=(1.0,))
    move = Move(
        Classify(model, preprocessing=how), build_optimizers(model, OPTIM, batch_size=len(batch)), autocast_dtype=torch.bfloat16
    )

    def step() -> None:
        move(batch)

    return step


CONTENDERS: dict[str, tuple[Callable[..., Step], bool]] = {
    "timm": (theirs, False),
    "timm compiled": (theirs, True),
    "vitrail": (ours, False),
    "vitrail compiled": (ours, True),
}
RATIOS = list(itertools.product(("vitrail", "vitrail compiled"), ("timm", "timm compiled")))


def contend(line: Connection, contender: str, case: Case, threads: int) -> None:
    """One contender's process: builds, answers each number of steps with the seconds they took, ends at 0."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    build, compiled = CONTENDERS[contender]
    step = build(case.vit, synthetic(case), compiled=compiled)
    while steps := line.recv():
        start = time.perf_counter()
        for _ in range(steps):
            step()
        line.send(time.perf_counter() - start)


def measure(case: Case, *, rounds: int, steps: int, warmup: int, threads: int) -> dict[str, Any]:
    """Images a second of every contender, and the ratios within the rounds."""
    spawn = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    first: dict[str, float] = {}
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}

    def run(name: str, steps: int) -> float:
        lines[name].send(steps)
        return float(lines[name].recv())

    workers = []
    try:
        for name in CONTENDERS:
            lines[name], theirs_end = spawn.Pipe()
            workers.append(spawn.Process(target=contend, args=(theirs_end, name, case, threads), daemon=True))
            workers[-1].start()
            theirs_end.close()  # so that a worker that dies is an EOFError here, not a wait without end
            first[name] = run(name, 1)
            run(name, warmup)
            print(f"  {name}: ready, first step {first[name]:.1f} s", file=sys.stderr)
        for turn in range(rounds):
            names = list(CONTENDERS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                speeds[name].append(steps * case.batch_size / run(name, steps))
            print(f"  round {turn + 1}: " + ", ".join(f"{n} {speeds[n][-1]:.1f}" for n in names), file=sys.stderr)
        for name in CONTENDERS:
            lines[name].send(0)
        for worker in workers:
            worker.join(timeout=30)
    finally:
        for worker in workers:
            worker.kill()
    return {
        "title": case.title,
        "batch_size": case.batch_size,
        "rounds": rounds,
        "steps_a_round": steps,
        "images_per_s": {name: summary(speeds[name]) for name in CONTENDERS},
        "first_step_s": {name: round(first[name], 2) for name in CONTENDERS},
        "ratios": {f"{a} / {b}": summary([x / y for x, y in zip(speeds[a], speeds[b], strict=True)]) for a, b in RATIOS},
    }


def summary(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


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

"""Cost of a step without labels, as a multiple of a supervised step of the same backbone: forward, backward, AdamW; on a CPU.

    python benchmarks/pretraining_step.py                        writes results/pretraining_step.json
    python benchmarks/pretraining_step.py --rounds 3 --out quick.json

Images are random and are drawn once: reading and augmentation are left out. In a round the contenders run one after the
other, in a rotating order; what counts is the ratio within a round. For LeJEPA the same backbone sees V views of the same
size, so the bar is V x 1.1 of a supervised step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import machine
from vitrail.bench.rounds import interleave, ratios, summary, timed
from vitrail.data.batch import Batch
from vitrail.data.draws import Draws
from vitrail.models import create_model
from vitrail.models.backbone import Backbone
from vitrail.models.device import bf16_is_faster, keep_freed_memory
from vitrail.models.positions import grid_of
from vitrail.settings import AugmentConfig, LejepaConfig, MaeConfig, OptimConfig, Preprocessing, ViewsConfig, pair
from vitrail.tasks import Task
from vitrail.tasks.classify import Classify
from vitrail.tasks.lejepa import Lejepa
from vitrail.tasks.mae import Mae
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Step

CPU = torch.device("cpu")
MODELS: dict[str, tuple[int, int, MaeConfig, tuple[int, ...]]] = {
    "S/16": (224, 16, MaeConfig(decoder_dim=128, decoder_depth=4, decoder_heads=4), (2, 4)),
    "Ti/4": (32, 64, MaeConfig(decoder_dim=64, decoder_depth=2, decoder_heads=4), (2, 4)),
    "L/16": (224, 4, MaeConfig(), ()),
}
"""Image side, batch size, MAE's decoder (of `mae-photos`, of `mae-small`, the paper's) and LeJEPA's views, by model."""


def build(name: str, side: int, classes: int) -> tuple[Backbone, Preprocessing]:
    """Return a backbone with random weights, and what its images are."""
    torch.manual_seed(0)
    images = Preprocessing(img_size=(side, side), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return create_model(name, img_size=side, num_classes=classes, pool="avg", class_token=False), images


def step_of(task: Task, batch: Batch, dtype: torch.dtype | None) -> Callable[[], object]:
    """Return a training step on a batch."""
    task.train()
    optimizers = build_optimizers(task.model, OptimConfig(), batch_size=len(batch), companions=task.companions())
    step, count = Step(task, optimizers, autocast_dtype=dtype, clip_norm=1.0), iter(range(1_000_000))

    def call() -> None:
        task.before_step(step=next(count), epoch=0, progress=0.5)
        step(batch)

    return call


def contenders(name: str, dtype: torch.dtype | None) -> dict[str, Callable[[], object]]:
    """Return the steps by title."""
    side, size, decoder, numbers = MODELS[name]
    g = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, side, side, generator=g)
    labels, indexes = torch.randint(1000, (size,), generator=g), torch.arange(size)
    plain = Batch(images=images, targets=torch.nn.functional.one_hot(labels, 1000).float(), labels=labels, indexes=indexes)
    model, shape = build(name, side, 1000)
    steps = {"supervised": step_of(Classify(model, preprocessing=shape), plain, dtype)}
    model, shape = build(name, side, 0)
    mae = Mae(model, preprocessing=shape, cfg=decoder, augment=AugmentConfig(), seed=0)
    patches = grid_of((side, side), pair(model.config.patch_size))
    visible = mae.draw_visible(Draws(seed=0, epoch=0, indexes=indexes), patches)
    steps["mae, 75 % masked"] = step_of(mae, replace(plain, visible=visible), dtype)
    for views in numbers:
        model, shape = build(name, side, 0)
        config, sizes = ViewsConfig(global_crops=views, local_crops=0), torch.full((size, 2), side)
        task = Lejepa(model, preprocessing=shape, cfg=LejepaConfig(), views=config, sizes=sizes, seed=0)
        batch = Batch(
            images=images, targets=plain.targets, labels=labels, indexes=indexes, views=(torch.stack([images] * views, 1),)
        )
        steps[f"lejepa, {views} views"] = step_of(task, batch, dtype)
    return steps


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", action="append", choices=tuple(MODELS), help="default: all of them")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "pretraining_step.json")
    args = parser.parse_args()
    keep_freed_memory()
    dtype, rows = torch.bfloat16 if bf16_is_faster(CPU) else None, {}
    for name in args.model or MODELS:
        side, size, decoder, _ = MODELS[name]
        calls = contenders(name, dtype)
        seconds = interleave({title: partial(timed, call) for title, call in calls.items()}, least=args.rounds, warmup=2)
        ratio = {title: summary(ratios(values, seconds["supervised"])) for title, values in seconds.items()}
        decoders = f"{decoder.decoder_depth} x {decoder.decoder_dim}"
        figures = {"supervised_s": summary(seconds["supervised"]), "ratio": ratio}
        rows[name] = {"side": side, "batch": size, "decoder": decoders, **figures}
        for title, values in ratio.items():
            low, high = values["min"], values["max"]
            print(f"{name}, {size} images of {side} px, {title}: {values['median']:.2f} ({low:.2f} to {high:.2f})")
    found = {"precision": "bf16" if dtype else "fp32", "rounds": args.rounds, "models": rows, "machine": machine.facts()}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

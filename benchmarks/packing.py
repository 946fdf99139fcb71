"""Training steps on images of many sizes: packed, beside padded to the largest and one size at a time.

    python benchmarks/packing.py                       writes results/packing.json
    python benchmarks/packing.py --rounds 2 --out quick.json

The sizes are those of a folder of photographs whose sides differ by up to four times: `--sizes` draws them, keyed by a seed.
Every contender takes the same images, as whole patches of the same model, through forward, backward and AdamW in one process,
in interleaved rounds. What counts is images/s over those of padding to the largest, within a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch

import machine
from vitrail.bench.rounds import interleave, ratios, summary, timed
from vitrail.bench.training import batch_of
from vitrail.data.batch import Batch
from vitrail.data.pack import fit_patches
from vitrail.models import ViT, create_model
from vitrail.models.device import keep_freed_memory
from vitrail.settings import OptimConfig, Pair, Preprocessing, pair
from vitrail.tasks.classify import Classify
from vitrail.tasks.losses import label_loss
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Step

PADDED, ALONE, PACKED = "padded to the largest", "one size at a time", "packed"


def draw_sizes(count: int, *, budget: Pair, patch: Pair) -> list[Pair]:
    """Sizes of a mixed folder: short side from a quarter of the budget's side to twice, aspect ratio from 1:2 to 2:1."""
    g = torch.Generator().manual_seed(0)
    area = (budget[0] * 2.0 ** (-2 + 3 * torch.rand(count, generator=g))).square()
    ratio = 2.0 ** (-1 + 2 * torch.rand(count, generator=g))
    crops = zip((area / ratio).sqrt().tolist(), (area * ratio).sqrt().tolist(), strict=True)
    return sorted(fit_patches(crop, budget=budget, patch=patch) for crop in crops)


class Padded(Classify):
    """Classification of canvases whose empty patches are masked."""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the loss."""
        assert isinstance(self.model, ViT)
        logits = self.model(batch.images, sizes=torch.tensor(batch.sizes)).float()
        return {"loss": label_loss(logits, batch.targets, loss="ce")}


class Alone(Classify):
    """Classification of each group of images of one size in a pass of its own."""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the loss."""
        assert batch.sizes is not None
        logits, done = list[torch.Tensor](), 0
        for height, width in dict.fromkeys(batch.sizes):
            count = batch.sizes.count((height, width))
            logits.append(self.model(batch.images[done : done + count, :, :height, :width]).float())
            done += count
        return {"loss": label_loss(torch.cat(logits), batch.targets, loss="ce")}


def step_of(kind: type[Classify], name: str, batch: Batch, dtype: torch.dtype | None) -> Callable[[], object]:
    """A training step of a task."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=10).train()
    images = Preprocessing(img_size=pair(model.config.img_size), in_channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    task, optim = kind(model, preprocessing=images), OptimConfig(name="adamw")
    step = Step(task, build_optimizers(model, optim, batch_size=len(batch)), autocast_dtype=dtype, clip_norm=1.0)
    return lambda: step(batch)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Ti/16")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "packing.json")
    args = parser.parse_args()
    keep_freed_memory()
    dtype = torch.bfloat16 if args.precision == "bf16" else None
    shape = create_model(args.model).config
    budget, patch = pair(shape.img_size), pair(shape.patch_size)
    sizes = draw_sizes(args.images, budget=budget, patch=patch)
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    canvas = torch.randn(len(sizes), 3, height, width, generator=torch.Generator().manual_seed(1))
    for row, (tall, wide) in enumerate(sizes):
        canvas[row, :, tall:], canvas[row, :, :, wide:] = 0, 0
    batch = dataclasses.replace(batch_of(canvas, 10), sizes=tuple(sizes))
    kinds = {PADDED: Padded, ALONE: Alone, PACKED: Classify}
    steps = {name: step_of(kind, args.model, batch, dtype) for name, kind in kinds.items()}
    seconds = interleave(
        {name: lambda step=step: timed(step) for name, step in steps.items()},  # type: ignore[misc]
        least=args.rounds,
        warmup=1,
        on_round=lambda values: print({name: f"{len(sizes) / value:.1f} images/s" for name, value in values.items()}),
    )
    tokens = sum(tall // patch[0] * (wide // patch[1]) for tall, wide in sizes)
    result = {
        "model": args.model,
        "precision": args.precision,
        "images": len(sizes),
        "sizes": len(set(sizes)),
        "patches_of_images": tokens / len(sizes) / (height // patch[0] * (width // patch[1])),
        "images_per_s": {name: summary([len(sizes) / value for value in values]) for name, values in seconds.items()},
        "over_padded": {name: summary(ratios(seconds[PADDED], seconds[name])) for name in (ALONE, PACKED)},
    }
    results = json.loads(args.out.read_text())["results"] if args.out.exists() else []
    results = [one for one in results if (one["model"], one["precision"]) != (args.model, args.precision)] + [result]
    args.out.write_text(json.dumps({"machine": machine.facts(), "results": results}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

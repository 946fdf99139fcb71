"""Does a map find what decides? A ViT learns to name the colour of a small square in noise; the maps must point at the square.

    python benchmarks/pointing.py [--images 500] [--seeds 0 1 2] [--out FILE]

Every image is noise with one square of one of four colours at a random place, off the patch grid; the colour is the class, so
nothing else can decide. The pointing game (Zhang et al. 2018): a hit is a map whose highest patch touches the square, among
images that the model names right. Chance is the share of patches that touch it. Writes benchmarks/results/pointing.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import machine
from vitrail import explain
from vitrail.explain import Maps
from vitrail.models import ViT

SIDE, PATCH, SQUARE, NOISE = 32, 4, 5, 0.3
COLORS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]]) * 1.5
SHAPE = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": len(COLORS)}
METHODS: dict[str, Callable[[ViT, Tensor], Maps]] = {
    f"{name}{suffix}": functools.partial(row.run, **options)
    for name, row in explain.METHODS.items()
    if row.evidence
    for suffix, options in {"": {}, ", norms held": {"hold_norms": True}}.items()
    if row.options.issuperset(options)
}
HEADS: dict[str, dict[str, Any]] = {"mean of the patches": {"class_token": False, "pool": "avg"}, "class token": {}}


class Squares(NamedTuple):
    """Images, and where what decides is in them."""

    images: Tensor
    """(B, 3, H, W), normalised."""
    labels: Tensor
    corners: Tensor
    """(B, 2): the square's first row and column."""


def squares(count: int, *, seed: int) -> Squares:
    """Noise with a square in it."""
    random = torch.Generator().manual_seed(seed)
    images = NOISE * torch.randn(count, 3, SIDE, SIDE, generator=random)
    labels = torch.randint(len(COLORS), (count,), generator=random)
    corners = torch.randint(SIDE - SQUARE + 1, (count, 2), generator=random)
    for image, label, (top, left) in zip(images, labels, corners.tolist(), strict=True):
        image[:, top : top + SQUARE, left : left + SQUARE] = COLORS[label][:, None, None]
    return Squares(images, labels, corners)


def trained(*, seed: int = 0, steps: int = 400, batch_size: int = 64, **fields: Any) -> ViT:
    """A small ViT that names the squares' colours."""
    torch.manual_seed(seed)
    model = ViT(**SHAPE | fields).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        data = squares(batch_size, seed=1_000_000 * (seed + 1) + step)
        loss = F.cross_entropy(model(data.images), data.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def touched(corners: Tensor) -> Tensor:
    """(B, gh, gw): the patches that hold a pixel of the square."""
    start = torch.arange(SIDE // PATCH) * PATCH
    rows, columns = (
        (start[None] + PATCH > corners[:, axis, None]) & (start[None] < corners[:, axis, None] + SQUARE) for axis in (0, 1)
    )
    return rows[:, :, None] & columns[:, None, :]


def hits(maps: Tensor, corners: Tensor) -> Tensor:
    """(B,): whether the highest patch touches the square."""
    return touched(corners).flatten(1).gather(1, maps.flatten(1).argmax(1, keepdim=True))[:, 0]


def named_right(model: ViT, data: Squares) -> Squares:
    """The images whose class the model predicts."""
    with torch.no_grad():
        right = model(data.images).argmax(1) == data.labels
    return Squares(*(values[right] for values in data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "pointing.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine.facts(), "images": args.images, "rows": {}}
    for name, fields in HEADS.items():
        seen: dict[str, list[float]] = {key: [] for key in ("accuracy", "chance", *METHODS)}
        for seed in args.seeds:
            model, data = trained(seed=seed, **fields), squares(args.images, seed=7 + seed)
            right = named_right(model, data)
            seen["accuracy"].append(len(right.labels) / len(data.labels))
            seen["chance"].append(touched(right.corners).float().mean().item())
            for method, run in METHODS.items():
                seen[method].append(hits(run(model, right.images).maps, right.corners).float().mean().item())
        result["rows"][name] = {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values)} for key, values in seen.items()
        }
        print(name, {key: f"{statistics.median(values):.1%}" for key, values in seen.items()}, flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

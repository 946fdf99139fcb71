"""Batches of images that keep their aspect ratio (NaViT: Dehghani et al. 2023): each crop has a size within a budget."""

# B batch · C channels · H W canvas

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.data.augment import augment
from vitrail.data.batch import Batch, RawBatch
from vitrail.settings import Pair, Preprocessing


def fit_pixels(size: tuple[float, float], *, budget: Pair) -> Pair:
    """Return the height and width of a crop that is shrunk, if it has more pixels than `budget`, and never enlarged."""
    scale = min(1.0, math.sqrt(budget[0] * budget[1] / (size[0] * size[1])))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def fit_patches(size: tuple[float, float], *, budget: Pair, patch: Pair) -> Pair:
    """Return the size of a crop in whole patches, at most as many as `budget` has: the aspect ratio is kept to half a patch.

    Small crops stay small; a crop below one patch is enlarged to it.
    """
    limit = (budget[0] // patch[0]) * (budget[1] // patch[1])
    height, width = fit_pixels(size, budget=(budget[0] // patch[0] * patch[0], budget[1] // patch[1] * patch[1]))
    rows, columns = (max(1, round(side / part)) for side, part in zip((height, width), patch, strict=True))
    while rows * columns > limit:  # rounding up, or a thin crop of one row
        tall = rows * patch[0] / height >= columns * patch[1] / width
        rows, columns = (rows - 1, columns) if (tall and rows > 1) or columns == 1 else (rows, columns - 1)
    return rows * patch[0], columns * patch[1]


def packed_sizes(boxes: Float[Tensor, "B 4"], *, budget: Pair, patch: Pair) -> list[Pair]:
    """Return the size of each crop."""
    return [fit_patches((height, width), budget=budget, patch=patch) for height, width in boxes[:, 2:].tolist()]


def augment_packed(raw: RawBatch, *, preprocessing: Preprocessing, patch: Pair, **options: Any) -> Batch:
    """Augment images at sizes of their own: those of one size together, as `augment` does, in the order of their sizes.

    `preprocessing.img_size` is the budget. Images are in the upper left corners of their canvases. Mixup and cutmix mix an
    image with another of its size.
    """
    sizes = packed_sizes(raw.boxes, budget=preprocessing.img_size, patch=patch)
    parts = []
    for size in sorted(set(sizes)):
        rows = torch.tensor([row for row, other in enumerate(sizes) if other == size])
        parts.append(augment(raw.rows(rows), preprocessing=replace(preprocessing, img_size=size), **options))
    return join_canvases(parts)


def join_canvases(parts: list[Batch]) -> Batch:
    """Join batches of different image sizes to one batch with sizes."""
    shapes = [part.images.shape for part in parts]
    height, width = max(shape[2] for shape in shapes), max(shape[3] for shape in shapes)
    first, sizes, at = parts[0].images, tuple[Pair, ...](), 0
    images = first.new_zeros(sum(map(len, parts)), first.shape[1], height, width)
    for part, (count, _, high, wide) in zip(parts, shapes, strict=True):
        images[at : at + count, :, :high, :wide] = part.images
        sizes, at = (*sizes, *[(high, wide)] * count), at + count
    tensors: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
        if isinstance(value, Tensor) and name != "images"
    }
    return replace(parts[0], images=images, sizes=sizes, **tensors)

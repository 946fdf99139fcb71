"""The images of a data set that stand for all of it, where a model as a whole is explained."""

# B batch · C channels · H W image

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped
from vitrail.data.sources import Source
from vitrail.settings import DataConfig, Preprocessing

SPLITS = ("test", "val", "train")
"""Splits to sample from, the first that a data set has: images that were not trained on say more."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSample:
    """Images of one split, through the model's evaluation view."""

    split: str
    indexes: Int64[Tensor, " n"]
    """Positions in the split of the images that were to be read."""
    raw: RawBatch
    """The images that could be read, as pixels, with their labels."""
    images: Float[Tensor, "B C H W"]
    """The same, normalised."""
    unreadable: tuple[Skipped, ...]
    """Files that could not be read, and why."""


def sample_images(
    source: Source, *, preprocessing: Preprocessing, cfg: DataConfig | None = None, limit: int = 64
) -> ImageSample:
    """Read at most `limit` images, evenly spaced over the test split, or else over val, or train.

    The first and the last image are among them, and the same call reads the same images. Raises ValueError for a limit
    below 1.
    """
    if limit < 1:
        raise ValueError(f"limit {limit} must be at least 1")
    name = next((name for name in SPLITS if name in source.splits), "train")
    split = source.load(name, preprocessing=preprocessing, cfg=cfg or DataConfig())  # type: ignore[arg-type]
    indexes = torch.linspace(0, len(split) - 1, min(limit, len(split))).round().long()
    raw, unreadable = split.read(indexes)
    images = normalise(raw.images, preprocessing)
    return ImageSample(split=name, indexes=indexes, raw=raw, images=images, unreadable=unreadable)

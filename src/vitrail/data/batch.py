"""What passes from files to the model: raw pixels, then batches."""

# B batch · C channels · H W canvas · K classes · V visible patches

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RawBatch:
    """Images as they were decoded, with the crop that was drawn for each."""

    images: UInt8[Tensor, "B C H W"]
    """Each image stands in the upper left corner of its canvas; the rest of the canvas is zero."""
    sizes: Int64[Tensor, "B 2"]
    """Height and width of each image on its canvas, in pixels."""
    boxes: Float[Tensor, "B 4"]
    """Top, left, height and width of the crop, in pixels of the canvas. It may reach over the image's edge."""
    labels: Int64[Tensor, " B"]
    indexes: Int64[Tensor, " B"]
    """Position of each image in its split: with seed and epoch, the key of every draw."""
    turns: Int64[Tensor, " B"] | None = None
    """How often each image came before in this epoch, which its draws are keyed by too; None: none of them did."""
    targets: Float[Tensor, "B K"] | None = None
    """The labels of each image as ones among zeros, where it may have any number of them; `labels` is then -1."""

    def to(self, device: torch.device | str) -> RawBatch:
        """The same batch on another device."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return RawBatch(**{name: value.to(device, non_blocking=True) for name, value in given.items()})

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Batch:
    """What the objective sees."""

    images: Float[Tensor, "B C H W"]
    """Normalised, at the model's size."""
    targets: Float[Tensor, "B K"]
    """Mixup and cutmix make it soft. Each row sums to one, but where images may have any number of labels."""
    labels: Int64[Tensor, " B"]
    """The class of each image before mixing."""
    indexes: Int64[Tensor, " B"]
    patch_size: int | None = None
    """The patch that the model cuts these images into; None is its own."""
    teacher_targets: Float[Tensor, "B K"] | None = None
    """Precomputed targets of a teacher, mixed like the labels; None without them."""
    visible: Int64[Tensor, "B V"] | None = None
    """Positions, row by row, of the patches that a masked model sees; None: all."""
    stands_in: bool = False
    """Whether the images stand in for some that can't be read, so that a process keeps step with others: they don't count."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: int, count: int) -> Batch:
        """Part number `index` of `count`, of equal lengths; where that can't be, they differ by one image."""
        return self.rows(slice(index * len(self) // count, (index + 1) * len(self) // count))

    def rows(self, rows: slice) -> Batch:
        """Some of the images."""
        tensors: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

"""Batch types: raw pixels from the files, and augmented batches for the model."""

# B batch · C channels · H W canvas · K classes · V visible patches · M masked patches · L patches

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vitrail.settings import Pair


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "C 1 1"]:
    """Return one number per channel on the device, where it stays: a copy at each step would wait for the device."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class RawBatch:
    """Decoded images, with the crop drawn for each."""

    images: UInt8[Tensor, "B C H W"]
    """Each image is in the upper left corner of its canvas; the rest of the canvas is zero."""
    sizes: Int64[Tensor, "B 2"]
    """Height and width of each image on its canvas, in pixels."""
    boxes: Float[Tensor, "B 4"]
    """Top, left, height and width of the crop, in pixels of the canvas. It may extend beyond the image."""
    labels: Int64[Tensor, " B"]
    indexes: Int64[Tensor, " B"]
    """Position of each image in its split: with seed and epoch, the key of every draw."""
    turns: Int64[Tensor, " B"] | None = None
    """Number of earlier occurrences of each image in this epoch, part of the key of its draws; None if no image is repeated."""
    targets: Float[Tensor, "B K"] | None = None
    """Multi-hot labels, if images may have any number of them; `labels` is then -1. None otherwise."""

    def to(self, device: torch.device | str) -> RawBatch:
        """Copy the batch to another device."""
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        return RawBatch(**{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    def pixels_to(self, device: torch.device) -> RawBatch:
        """Copy the pixels alone. All else stays on the CPU, where the draws of an augmentation are read without waiting.

        Pixels for a GPU are copied from pinned memory, while it computes.
        """
        images = self.images
        if device.type == "cuda" and images.device.type == "cpu" and not images.is_pinned():
            images = images.pin_memory()
        return replace(self, images=images.to(device, non_blocking=True))

    def shrunk(self, factor: float) -> RawBatch:
        """Return the batch with canvases, images and crops smaller by `factor`, at most 1."""
        sides = [max(1, round(side * factor)) for side in self.images.shape[2:]]
        images = F.interpolate(self.images.float(), sides, mode="area").to(torch.uint8)  # (B, C, h, w)
        sizes = torch.minimum((self.sizes * factor).round().long().clamp(min=1), torch.tensor(sides))
        return replace(self, images=images, sizes=sizes, boxes=self.boxes * factor)

    def rows(self, rows: Int64[Tensor, " b"]) -> RawBatch:
        """Return some images; `rows` is on the CPU."""
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        return RawBatch(**{name: value[rows.to(value.device, non_blocking=True)] for name, value in tensors.items()})

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented images and targets: the input of an objective."""

    images: Float[Tensor, "B C H W"]
    """Normalised, at the model's size."""
    targets: Float[Tensor, "B K"]
    """Soft after mixup or cutmix. Each row sums to 1, except with multi-label data."""
    labels: Int64[Tensor, " B"]
    """Class of each image before mixing."""
    indexes: Int64[Tensor, " B"]
    """Position of each image in its split, on the CPU."""
    patch_size: int | None = None
    """Patch size for these images; None is the model's own."""
    teacher_targets: Float[Tensor, "B K"] | None = None
    """Precomputed teacher targets, mixed as `targets` are; None without a teacher."""
    visible: Int64[Tensor, "B V"] | None = None
    """Row-major positions of the patches that a masked model sees; None: all."""
    masked: Int64[Tensor, "B M"] | None = None
    """Row-major positions of the patches that a mask token stands for; None: no patch is masked."""
    tokens: Int64[Tensor, "B M"] | None = None
    """Discrete token of each masked patch; None for a task without them."""
    sizes: tuple[Pair, ...] | None = None
    """Height and width of each image in the upper left corner of its canvas, in pixels; None: all fill their canvas."""
    views: tuple[Float[Tensor, "B _v C _h _w"], ...] | None = None
    """Views of each image, in groups of one size: global ones, then local ones; `images` are the first of them. None: no
    views."""
    view_masks: Bool[Tensor, "B _v L"] | None = None
    """True for the masked patches of the global views, row by row; None: no patch is masked."""
    stands_in: bool = False
    """True for placeholder images that keep a process in step with the others; they are not counted."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: int, count: int) -> Batch:
        """Return part `index` of `count`; the lengths of the parts differ by one image at most."""
        return self.rows(slice(index * len(self) // count, (index + 1) * len(self) // count))

    def rows(self, rows: slice) -> Batch:
        """Return a slice of the batch."""
        tensors = {name: value[rows] for name, value in self.tensors().items()}
        return replace(self.with_tensors(tensors), sizes=None if self.sizes is None else self.sizes[rows])

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name; those of the views are "views.0", "views.1"."""
        named = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return named | {f"views.{number}": value for number, value in enumerate(self.views or ())}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Batch:
        """Return the batch with other tensors, of the names of `tensors`."""
        fields: dict[str, Any] = {name: value for name, value in tensors.items() if "." not in name}
        if self.views is not None:
            fields["views"] = tuple(tensors[f"views.{number}"] for number in range(len(self.views)))
        return replace(self, **fields)

"""Splits in memory as uint8: reading a batch is an index operation, without loader processes."""

# N images · B batch · C channels · H W image

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split
from vitrail.data.decode import eval_view, view_is_exact
from vitrail.settings import Preprocessing

LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 1/65536, the weights of Pillow's convert("L")


def to_channels(images: UInt8[Tensor, "N C H W"], channels: int) -> UInt8[Tensor, "N D H W"]:
    """Convert grey to RGB by repeating, RGB to grey by luma; bit-exact with Pillow's convert."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1).contiguous()
    weights = torch.tensor(LUMA, dtype=torch.int32).view(3, 1, 1)
    grey = [((part.int() * weights).sum(1, keepdim=True) + 32768 >> 16).byte() for part in images.split(4096)]
    return torch.cat(grey)  # in parts: 32-bit sums of a whole set need 12 times its memory


def whole_boxes(sizes: Int64[Tensor, "B 2"]) -> Float[Tensor, "B 4"]:
    """Return the boxes that cover the whole images."""
    return torch.cat([torch.zeros_like(sizes), sizes], dim=1).float()


class FixedSplit(Split):
    """Images of one size, in one tensor."""

    def __init__(
        self,
        images: UInt8[Tensor, "N C H W"],
        *,
        labels: Int64[Tensor, " N"],
        names: Sequence[str],
        skipped: Sequence[Skipped] = (),
        view: Preprocessing | None = None,
    ) -> None:
        """With `view`, images are converted to the evaluation view when they are read."""
        self.images = images
        self._view = None if view is None or view_is_exact((images.shape[2], images.shape[3]), view) else view
        size = self._view.img_size if self._view else images.shape[2:]
        super().__init__(labels=labels, sizes=torch.tensor([size]).expand(len(labels), 2), names=names, skipped=skipped)

    def cache_views(self, *, budget_bytes: float) -> FixedSplit:
        """Return the split with evaluation views computed in advance, if they fit the budget; else the split itself."""
        if self._view is None or not len(self) or len(self) * self.images.shape[1] * self.sizes[0].prod().item() > budget_bytes:
            return self
        return FixedSplit(self._views(self.images), labels=self.labels, names=self.names, skipped=self.skipped)

    def on(self, device: torch.device, *, budget_bytes: float) -> FixedSplit:
        """See Split.on: then reading a batch copies nothing but indexes."""
        if self._view is not None or self.images.device == device or self.images.nbytes > budget_bytes:
            return self
        moved = copy.copy(self)
        moved.images = self.images.to(device)
        return moved

    def fingerprint(self) -> str:
        """Hash the pixels."""
        return hashlib.sha256(self.images.cpu().contiguous().numpy().data).hexdigest()

    def read(
        self, indexes: Int64[Tensor, " B"], *, boxes: Float[Tensor, "B 4"] | None = None
    ) -> tuple[RawBatch, tuple[Skipped, ...]]:
        """Index the images; none fails."""
        images = self.images[indexes.to(self.images.device, non_blocking=True)]  # (B, C, H, W)
        if self._view is not None:
            images = self._views(images)
        sizes = self.sizes[indexes]
        boxes = whole_boxes(sizes) if boxes is None else boxes
        return RawBatch(images, sizes, boxes, self.labels[indexes], indexes), ()

    def _views(self, images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B C h w"]:
        assert self._view is not None
        if not len(images):
            return images.new_empty(0, images.shape[1], *self._view.img_size)
        return torch.stack([eval_view(image.permute(1, 2, 0).numpy(), self._view) for image in images])


def stack_on_canvas(
    images: Sequence[UInt8[Tensor, "C _h _w"]], *, empty: Preprocessing | None = None
) -> tuple[UInt8[Tensor, "B C H W"], Int64[Tensor, "B 2"]]:
    """Stack images, each in the upper left corner of a canvas of the largest size. Return canvases and sizes.

    `empty` has the channels and the canvas of a batch without images.
    """
    if not images:
        assert empty is not None
        return torch.zeros(0, empty.in_channels, *empty.img_size, dtype=torch.uint8), torch.zeros(0, 2, dtype=torch.long)
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.amax(0).tolist()
    if all(image.shape == images[0].shape for image in images):
        return torch.stack(list(images)), sizes  # (B, C, H, W)
    canvas = torch.zeros(len(images), images[0].shape[0], height, width, dtype=torch.uint8)
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return canvas, sizes


class RaggedSplit(Split):
    """Images of different sizes, decoded in memory."""

    def __init__(
        self,
        images: Sequence[UInt8[Tensor, "C _h _w"]],
        *,
        labels: Int64[Tensor, " N"],
        names: Sequence[str],
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.images = images
        sizes = torch.tensor([image.shape[1:] for image in images]).view(-1, 2)
        super().__init__(labels=labels, sizes=sizes, names=names, skipped=skipped)

    def read(
        self, indexes: Int64[Tensor, " B"], *, boxes: Float[Tensor, "B 4"] | None = None
    ) -> tuple[RawBatch, tuple[Skipped, ...]]:
        """Stack the images at `indexes`, each in the upper left corner of a canvas of the largest size; none fails."""
        sizes = self.sizes[indexes]
        canvas, _ = stack_on_canvas([self.images[i] for i in indexes.tolist()])
        boxes = whole_boxes(sizes) if boxes is None else boxes
        return RawBatch(canvas, sizes, boxes, self.labels[indexes], indexes), ()

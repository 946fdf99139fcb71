"""Abstract data set: a source, with its classes and pixel format, and the splits that it loads."""

# N images · B batch · C channels · H W image

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.data.bands import ValueRange, ValuesInUse
from vitrail.data.batch import RawBatch
from vitrail.settings import AugmentConfig, DataConfig, Pair, Preprocessing

SplitName = Literal["train", "val", "test"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Skipped(NamedTuple):
    """A skipped file and the reason."""

    path: str
    reason: str


class NoClasses(ValueError):
    """A folder of images without usable classes."""


class Split(ABC):
    """The images of one split, read by index."""

    labels: Int64[Tensor, " N"]
    """Class of each image; -1 for all images of multi-label data."""
    sizes: Int64[Tensor, "N 2"]
    """Height and width of each image, in the pixels of `boxes`."""
    names: Sequence[str]
    """Relative path of each image, or such as "fashion-mnist/test/17"."""
    multi_hot: Bool[Tensor, "N K"] | None = None
    """Labels of each image in multi-label data; None for one class per image."""

    def __init__(
        self,
        *,
        labels: Int64[Tensor, " N"],
        sizes: Int64[Tensor, "N 2"],
        names: Sequence[str],
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.labels, self.sizes, self.names = labels, sizes, names
        self._skipped = {item.path: item for item in skipped}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multi_label(self) -> bool:
        """True if an image may have any number of labels, not one class."""
        return self.multi_hot is not None

    def targets(self, indexes: Int64[Tensor, " B"]) -> Float[Tensor, "B K"] | None:
        """Return the multi-hot targets of some images; None if each has one class (`labels`)."""
        return None if self.multi_hot is None else self.multi_hot[indexes].float()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files that could not be read, at load time or later."""
        return tuple(self._skipped.values())

    def record(self, failures: Sequence[Skipped]) -> None:
        """Record files that `read` could not read; it may have run on a copy of the split, in a loader process."""
        self._skipped.update((item.path, item) for item in failures)

    @property
    def workers(self) -> int:
        """Number of loader processes; 0 reads in the calling process."""
        return 0

    def fingerprint(self) -> str | None:
        """Return a hash that changes with the images and their order; None if that needs reading them all."""
        return None

    def on(self, device: torch.device, *, budget_bytes: float) -> Split:
        """Return the split with its pixels on a device, where they fit the budget; else the split itself."""
        return self

    @abstractmethod
    def read(
        self, indexes: Int64[Tensor, " B"], *, boxes: Float[Tensor, "B 4"] | None = None
    ) -> tuple[RawBatch, tuple[Skipped, ...]]:
        """Read the images at `indexes`, with a crop for each (None: the whole image); return the batch and the failed files.

        An image that failed is missing from the batch at all its positions in `indexes`.
        """


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A data set on disk: classes, pixel format and splits, known before images are loaded."""

    name: str
    classes: tuple[str, ...]
    channels: int
    """1 is grey, 3 is RGB, others are bands."""
    img_size: Pair | None
    """(height, width) of every image; None for photographs of any size."""
    mean: tuple[float, ...]
    """Mean of each channel, for pixels from 0 to 1; ImageNet's for photographs."""
    std: tuple[float, ...]
    splits: tuple[SplitName, ...]
    """Splits that `load` accepts."""
    multi_label: bool = False
    """True if an image may have any number of labels, not one class."""
    notes: tuple[str, ...] = ()
    """Messages about how the data was read: which folder serves as which split, what is not used."""

    @abstractmethod
    def load(
        self, split: SplitName, *, preprocessing: Preprocessing, cfg: DataConfig, augment: AugmentConfig | None = None
    ) -> Split:
        """Load a split, in the channels of `preprocessing`.

        With augment None, or augment.crop "pad" or "none", images are the evaluation view: resized to img_size / crop_pct,
        then cropped at the centre to img_size. With augment.crop "resized" or "whole" they are whole images.
        Raises ValueError for a missing split and for channels that can't be converted.
        """

    @abstractmethod
    def with_fraction(self, fraction: float) -> Source:
        """Return the source with a share of its training images, in the order of `subset.stratified_order`.

        Every class keeps at least one.
        """

    def class_counts(self) -> tuple[int, ...]:
        """Count the training images of each class. Photographs are only listed; small images are loaded."""
        size = self.img_size or (8, 8)
        images = Preprocessing(img_size=size, in_channels=self.channels, mean=self.mean, std=self.std)
        labels = self.load("train", preprocessing=images, cfg=DataConfig()).labels
        return tuple(labels.bincount(minlength=len(self.classes)).tolist())

    def train_images(self) -> int:
        """Count the training images, as `class_counts` does."""
        return sum(self.class_counts())

    def check_split(self, split: SplitName, *, channels: int) -> None:
        """Raise ValueError for a missing split, and for a number of channels that images can't be converted to."""
        if split not in self.splits:
            raise ValueError(f'{self.name} has no split "{split}"; it has {", ".join(self.splits)}')
        if not self.takes(channels):
            raise ValueError(f"in_channels {channels} {self.refusal}")

    def takes(self, channels: int) -> bool:
        """Return True if images can be converted to a number of channels: grey and RGB convert to each other."""
        return channels == self.channels or {channels, self.channels} <= {1, 3}

    @property
    def refusal(self) -> str:
        """Error message for a number of channels that does not fit: the second half of a sentence."""
        takes = "1 or 3" if self.takes(1) else self.channels
        return f"does not fit {self.name}, whose images have {self.channels}; use {takes}"

    def values_in_use(self, *, threads: int) -> ValuesInUse | None:
        """Measure the value range of images with more than 8 bits; None if all have 8."""
        return None

    def band_statistics(self, *, value_range: ValueRange | None, threads: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each band, for pixels from 0 to 1."""
        return self.mean, self.std


def whole_images(augment: AugmentConfig | None) -> bool:
    """Return True if crops are drawn on the whole image, False if on the evaluation view."""
    return augment is not None and augment.crop in ("resized", "whole")


def stable_fraction(key: str) -> float:
    """Hash a key to a number in [0, 1), which assigns a file to a split independently of all others."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") / 2**64

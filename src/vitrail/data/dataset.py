"""What a data set is: a source, which knows its classes and pixels, and the splits that it loads."""

# N images · B batch · C channels · H W image

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.data.bands import ValueRange, ValuesInUse
from vitrail.data.batch import RawBatch
from vitrail.settings import AugmentConfig, DataConfig, Pair, Preprocessing

SplitName = Literal["train", "val", "test"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Skipped(NamedTuple):
    """A file that is left out, and why."""

    path: str
    reason: str


class NoClasses(ValueError):
    """A folder that has images, and no classes to learn from them."""


class Split(ABC):
    """The images of one split, ready to be read by position."""

    labels: Int64[Tensor, " N"]
    """Class of each image; -1 throughout where an image may have several."""
    sizes: Int64[Tensor, "N 2"]
    """Height and width of each image, in pixels, as `boxes` count them."""
    names: Sequence[str]
    """Relative path of each image, or such as "fashion-mnist/test/17"."""
    multi_hot: Bool[Tensor, "N K"] | None = None
    """Which labels each image has, where it may have any number of them."""

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
        """Whether an image may have any number of labels, rather than one class."""
        return self.multi_hot is not None

    def targets(self, indexes: Int64[Tensor, " B"]) -> Float[Tensor, "B K"] | None:
        """The labels of some images as ones among zeros; None where each has one class, which `labels` says."""
        return None if self.multi_hot is None else self.multi_hot[indexes].float()

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files left out: unreadable when the split was loaded, or since."""
        return tuple(self._skipped.values())

    def record(self, failures: Sequence[Skipped]) -> None:
        """Adds files that could not be read later on; `read` may have run on a copy, in a loader process."""
        self._skipped.update((item.path, item) for item in failures)

    @property
    def workers(self) -> int:
        """Loader processes that reading is worth; 0 reads in the process that asks."""
        return 0

    def fingerprint(self) -> str | None:
        """A hash that changes with the images and their order; None where only reading them would tell."""
        return None

    @abstractmethod
    def read(
        self, indexes: Int64[Tensor, " B"], *, boxes: Float[Tensor, "B 4"] | None = None
    ) -> tuple[RawBatch, tuple[Skipped, ...]]:
        """The images at `indexes`, with the crop drawn for each (None: the whole image), and the files that failed.

        Images that failed are missing from the batch, each in every place that `indexes` gives it.
        """


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A data set that was found: what there is to know of it before its images are loaded."""

    name: str
    classes: tuple[str, ...]
    channels: int
    """1 is grey, 3 is RGB, others are bands."""
    img_size: Pair | None
    """(height, width) of every image; None for photographs of any size."""
    mean: tuple[float, ...]
    """Of each channel, for pixels from 0 to 1; ImageNet's for photographs."""
    std: tuple[float, ...]
    splits: tuple[SplitName, ...]
    """The splits that `load` gives."""
    multi_label: bool = False
    """Whether an image may have any number of labels, rather than one class."""
    notes: tuple[str, ...] = ()
    """How the data was read where one may not expect it: which folder serves as which split, what is not used."""

    @abstractmethod
    def load(
        self, split: SplitName, *, preprocessing: Preprocessing, cfg: DataConfig, augment: AugmentConfig | None = None
    ) -> Split:
        """The images of a split, in the channels of `preprocessing`.

        With augment None they are the evaluation view: resized to img_size / crop_pct, the centre cut out at
        exactly img_size. With augment.crop "pad" and "none" too; with "resized" they are whole images.
        Raises ValueError for a split that is not there and for channels that can't be converted.
        """

    def class_counts(self) -> tuple[int, ...]:
        """Training images of each class. Photographs are only listed; small images are loaded."""
        size = self.img_size or (8, 8)
        images = Preprocessing(img_size=size, in_channels=self.channels, mean=self.mean, std=self.std)
        labels = self.load("train", preprocessing=images, cfg=DataConfig()).labels
        return tuple(labels.bincount(minlength=len(self.classes)).tolist())

    def train_images(self) -> int:
        """Training images in all; as `class_counts` counts them."""
        return sum(self.class_counts())

    def check_split(self, split: SplitName, *, channels: int) -> None:
        """Raises ValueError for a split that is not there, and for a number of channels that no image has."""
        if split not in self.splits:
            raise ValueError(f'{self.name} has no split "{split}"; it has {", ".join(self.splits)}')
        if not self.takes(channels):
            raise ValueError(f"in_channels {channels} {self.refusal}")

    def takes(self, channels: int) -> bool:
        """Whether its images can be given in so many channels: grey and colour become each other."""
        return channels == self.channels or {channels, self.channels} <= {1, 3}

    @property
    def refusal(self) -> str:
        """Why a number of channels is none that it takes, and what is."""
        takes = "1 or 3" if self.takes(1) else self.channels
        return f"does not fit {self.name}, whose images have {self.channels}; use {takes}"

    def values_in_use(self, *, threads: int) -> ValuesInUse | None:
        """The values of images with more than 8 bits; None where all have 8."""
        return None

    def band_statistics(self, *, value_range: ValueRange | None, threads: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each band, for pixels from 0 to 1."""
        return self.mean, self.std


def whole_images(augment: AugmentConfig | None) -> bool:
    """Whether the crop is drawn from the whole image; else it starts from the evaluation view."""
    return augment is not None and augment.crop == "resized"


def stable_fraction(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key: the side of a file that never changes."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") / 2**64

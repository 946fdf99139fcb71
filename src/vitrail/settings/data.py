"""The `data` section, and image preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrail.settings.values import Pair


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `data` section: data set, validation split, preprocessing and loading."""

    path: str = "fashion-sample"
    """Named data set or folder."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation if the data set has no validation split."""
    fraction: float = 1.0
    """Share of the training images that are used, with every class in proportion; the same ones for every seed."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, for pixels from 0 to 1; null takes the checkpoint's, or without one the data set's."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; null as for mean."""
    crop_pct: float | None = None
    """Evaluation view: the centre crop's share of the resized image; null as for mean."""
    crop_mode: Literal["center", "squash"] | None = None
    """Evaluation view: keep the aspect ratio and crop, or squash; null as for mean."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resize filter of the evaluation view; null as for mean."""
    range: Literal["auto", "full"] | tuple[float, float] = "auto"
    """Black and white level of images with more than 8 bits; auto measures them, full is the whole range of their type."""
    balance: Literal["none", "sampler", "loss"] = "none"
    """Class balancing: draw each class equally often, or weight the loss by inverse class frequency."""
    pack: bool = False
    """Train on images that keep their aspect ratio, of many sizes in one batch, each within the number of patches of
    model.img_size (NaViT); small images stay small."""
    workers: int = -1
    """Loader processes for data sets larger than memory_gb; -1 takes the number of cores."""
    memory_gb: float = 2.0
    """Size of decoded images in GB below which a data set is kept in memory."""
    max_bad: float = 0.01
    """Share of unreadable files above which training is refused."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"data.val_fraction {self.val_fraction} must be at least 0 and below 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"data.fraction {self.fraction} must be above 0, and at most 1")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"data.max_bad {self.max_bad} must be between 0 and 1")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"data.crop_pct {self.crop_pct} must be above 0, and at most 1")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"data.std {self.std} must be above 0")
        if not isinstance(self.range, str) and not self.range[0] < self.range[1]:
            raise ValueError(f"data.range {list(self.range)} must be two numbers, the smaller first")
        if self.memory_gb < 0:
            raise ValueError(f"data.memory_gb {self.memory_gb} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Image preprocessing of a model, saved with its weights."""

    img_size: Pair
    """Input size of the model, (height, width)."""
    in_channels: int
    """Number of channels: 1 is grey, 3 is RGB, others are the bands of the files."""
    mean: tuple[float, ...]
    """Mean of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, for pixels from 0 to 1."""
    crop_pct: float = 1.0
    """Share of the resized image that the centre crop keeps."""
    crop_mode: Literal["center", "squash"] = "center"
    """Crop mode: "center" keeps the aspect ratio and crops the excess; "squash" resizes to the crop's shape."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Resize filter."""
    range: tuple[float, float] | None = None
    """Black and white level of images with more than 8 bits; null is the whole range of their type."""

"""The `data` section, and what happens to an image before the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrail.settings.values import Pair


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The `data` section: which images, and how they come in."""

    path: str = "fashion-sample"
    """A named set or a folder."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation where the set has no validation split."""
    mean: tuple[float, ...] | None = None
    """Of each channel, for pixels from 0 to 1; null takes the checkpoint's, or without one the data set's."""
    std: tuple[float, ...] | None = None
    """Of each channel; null as for mean."""
    crop_pct: float | None = None
    """Evaluation view: the centre crop's share of the resized image; null as for mean."""
    crop_mode: Literal["center", "squash"] | None = None
    """Evaluation view: keep the image's shape and cut, or squash it; null as for mean."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Filter of the evaluation view; null as for mean."""
    range: Literal["auto", "full"] | tuple[float, float] = "auto"
    """Values of more than 8 bits that become black and white; auto measures them, full is the whole range of their type."""
    balance: Literal["none", "sampler", "loss"] = "none"
    """For classes of unequal size: draw each class equally often, or weigh each class's loss by its rarity."""
    workers: int = -1
    """Loader processes for sets that do not fit memory_gb; -1 takes the number of cores."""
    memory_gb: float = 2.0
    """A set whose decoded images need less than this lives in memory."""
    max_bad: float = 0.01
    """Share of unreadable files above which training refuses to start."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"data.val_fraction {self.val_fraction} must be at least 0 and below 1")
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
    """What happens to an image before the model; it travels with the weights."""

    img_size: Pair
    """(height, width) the model sees."""
    in_channels: int
    """1 is grey, 3 is RGB, others are the bands of the files."""
    mean: tuple[float, ...]
    """Of each channel, for pixels from 0 to 1."""
    std: tuple[float, ...]
    """Of each channel, for pixels from 0 to 1."""
    crop_pct: float = 1.0
    """The centre crop's share of the resized image."""
    crop_mode: Literal["center", "squash"] = "center"
    """The resize keeps the image's shape, and the crop cuts off what juts out; or it gives every image the crop's shape."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Filter of the resize."""
    range: tuple[float, float] | None = None
    """Values of more than 8 bits that become black and white; null is the whole range of their type."""

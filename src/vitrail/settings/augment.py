"""The `augment` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """RandAugment policy (Cubuk et al. 2020), in its increasing variant, as in `rand-m9-mstd0.5-inc1`."""

    n: int = 2
    """Operations per image."""
    m: float = 9.0
    """Magnitude, 0 to 10."""
    mstd: float = 0.5
    """Standard deviation of the magnitude."""

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"augment.rand_augment.n {self.n} must not be negative; null turns RandAugment off")
        if not 0 <= self.m <= 10 or self.mstd < 0:
            raise ValueError(f"augment.rand_augment: m {self.m} must be between 0 and 10, and mstd {self.mstd} not negative")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The `augment` section: augmentation, drawn anew for every image and epoch."""

    crop: Literal["resized", "pad", "none", "whole"] = "resized"
    """Random resized crop, a crop of the zero-padded image, the evaluation view, or the whole image in the image size."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: minimum and maximum area, as a share of the image."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: minimum and maximum ratio of width to height."""
    crop_pad: int = 4
    """Crop with padding: pixels added on each side."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Jitter of brightness, contrast and saturation: factors are drawn from 1 ± this value."""
    rand_augment: RandAugment | None = None
    """RandAugment policy; null turns it off."""
    three_augment: bool = False
    """3-Augment: one of greyscale, solarise and blur for each image (Touvron et al. 2022)."""
    repeats: int = 1
    """Repeated augmentation: views of each image in a batch (Hoffer et al. 2020)."""
    erase_prob: float = 0.0
    """Probability of random erasing, pixel mode (Zhong et al. 2020)."""
    mixup_alpha: float = 0.0
    """Mixup's Beta parameter (Zhang et al. 2018); 0 turns it off."""
    cutmix_alpha: float = 0.0
    """CutMix's Beta parameter (Yun et al. 2019); 0 turns it off."""
    mixup_prob: float = 1.0
    """Probability that an image is mixed with another, by mixup or cutmix."""
    switch_prob: float = 0.5
    """Probability of cutmix rather than mixup if both are on."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"augment.crop_scale {self.crop_scale} must be two numbers, 0 < least <= greatest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"augment.crop_ratio {self.crop_ratio} must be two numbers, 0 < least <= greatest")
        if self.repeats < 1:
            raise ValueError(f"augment.repeats {self.repeats} must be at least 1")
        for name in ("flip", "erase_prob", "mixup_prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} {getattr(self, name)} must be between 0 and 1")
        for name in ("crop_pad", "color_jitter", "mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} {getattr(self, name)} must not be negative")

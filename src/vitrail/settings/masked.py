"""Settings of the methods with a mask token: SimMIM (Xie et al. 2022) and BEiT (Bao et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PIXELS = "pixels"
"""Tokenizer that needs no model."""


@dataclass(frozen=True, kw_only=True)
class SimmimConfig:
    """The `simmim` section: masked pixels by a linear layer (`vitrail pretrain --method simmim`). Defaults are the paper's."""

    mask_ratio: float = 0.6
    """Share of the image that is masked."""
    mask_size: int = 32
    """Side of the masked squares in pixels, rounded down so that they are whole patches and divide the image."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"simmim.mask_ratio {self.mask_ratio} must be above 0 and below 1")
        if self.mask_size < 1:
            raise ValueError(f"simmim.mask_size {self.mask_size} must be at least 1 pixel")


@dataclass(frozen=True, kw_only=True)
class BeitPretrainConfig:
    """The `beit` section: tokens of masked patches, for `vitrail pretrain --method beit`."""

    mask_ratio: float = 0.4
    """Share of the patches that is masked, by blocks."""
    codebook: int = 8192
    """Number of discrete tokens; at most a quarter of the patches of fit_images."""
    tokenizer: str = PIXELS
    """Codebook: "pixels" is k-means on the patches' pixels; a checkpoint or run, k-means on its patch features, by cosine."""
    fit_images: int = 2000
    """Training images whose patches k-means is fitted to, of all patches 32 for each token at most."""
    normalise: Literal["none", "mean", "std"] = "std"
    """Normalisation of each patch's pixels before k-means: none, zero mean, or zero mean and unit deviation."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"beit.mask_ratio {self.mask_ratio} must be above 0 and below 1")
        for name in ("codebook", "fit_images"):
            if getattr(self, name) < 2:
                raise ValueError(f"beit.{name} {getattr(self, name)} must be at least 2")

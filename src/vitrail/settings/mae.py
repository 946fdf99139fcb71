"""Settings of masked autoencoding (He et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Masking = Literal["random", "block", "grid"]
"""Mask pattern: random patches, blocks, or all but a regular grid."""


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """The `mae` section: the masked autoencoder of `vitrail pretrain`. The defaults are the paper's."""

    mask_ratio: float = 0.75
    """Share of the patches that is hidden from the encoder."""
    masking: Masking = "random"
    """Hidden patches: random ones, random blocks (BEiT), or all but a regular grid."""
    decoder_dim: int = 512
    """Width of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of the decoder; decoder_dim must be divisible by them and by 4."""
    norm_pixels: bool = True
    """Normalise the target pixels of each patch to zero mean and unit variance; false: pixels as the model takes them."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mae.mask_ratio {self.mask_ratio} must be above 0 and below 1")
        for name in ("decoder_dim", "decoder_depth", "decoder_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"mae.{name} {getattr(self, name)} must be at least 1")
        unit = math.lcm(4, self.decoder_heads)  # the positions have four parts
        if self.decoder_dim % unit:
            fits = max(1, round(self.decoder_dim / unit)) * unit
            raise ValueError(f"mae.decoder_dim {self.decoder_dim} is not a multiple of 4 and of its heads; use {fits}")

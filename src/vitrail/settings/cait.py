"""Settings of CaiT, class-attention in image Transformers (Touvron et al. 2021)."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair, nearest, pair


class CaitSize(NamedTuple):
    """One row of the paper's table 3."""

    embed_dim: int
    depth: int
    num_heads: int


CAIT_SIZES = {  #       width depth heads   parameters at /16, 224 px, 1000 classes
    "cait_xxs24": CaitSize(192, 24, 4),  #   11_956_264
    "cait_xxs36": CaitSize(192, 36, 4),  #   17_299_720
    "cait_xs24": CaitSize(288, 24, 6),  #    26_560_648
    "cait_s24": CaitSize(384, 24, 8),  #     46_916_200
    "cait_s36": CaitSize(384, 36, 8),  #     68_220_712
    "cait_m36": CaitSize(768, 36, 16),  #   270_929_512
    "cait_m48": CaitSize(768, 48, 16),  #   356_008_936
}

CAIT_CUSTOM = "cait_custom"
"""Name of a shape that is not in the table."""

INIT_BY_DEPTH = ((18, 0.1), (24, 1e-5))
"""LayerScale's initial value up to a depth (section 2.2); deeper models start at `INIT_OF_DEEPEST`."""
INIT_OF_DEEPEST = 1e-6


def parse_cait_name(name: str) -> dict[str, Any] | None:
    """Return the CaitConfig fields that a name decides; None for a name that does not start with "cait_".

    "cait_s24" and timm's "cait_s24_384" are names of the same model at two image sizes. Raises ValueError for another size.
    """
    if not name.startswith("cait_"):
        return None
    if name == CAIT_CUSTOM:
        return {}
    size, side = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()  # type: ignore[union-attr]
    if size not in CAIT_SIZES:
        names = ", ".join(CAIT_SIZES)
        raise ValueError(
            f'model "{name}" is none of {names}{nearest(size, list(CAIT_SIZES))}; timm\'s "cait_s24_384" is a name too'
        )
    return {**CAIT_SIZES[size]._asdict(), "patch_size": 16, **({"img_size": int(side)} if side else {})}


@dataclass(frozen=True, kw_only=True)
class CaitConfig:
    """Shape of a CaiT. The defaults are CaiT-XXS24."""

    img_size: int | Pair = 224
    """Image side in pixels, or (height, width)."""
    patch_size: int | Pair = 16
    """Patch side in pixels, or (height, width)."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    embed_dim: int = 192
    """Width D of every token."""
    depth: int = 24
    """Blocks with talking-heads attention among the patches."""
    class_depth: int = 2
    """Blocks with class attention, behind the others."""
    num_heads: int = 4
    """Attention heads; must divide embed_dim."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over embed_dim."""
    qkv_bias: bool = True
    """Bias in the projections to query, key and value."""
    init_values: float | None = None
    """LayerScale's initial value; None is the paper's for the depth: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 above."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    pos_drop_rate: float = 0.0
    """Dropout after the position embedding."""
    proj_drop_rate: float = 0.0
    """Dropout after attention and MLP of the blocks among the patches."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights among the patches."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of every block among the patches; it does not rise with depth (section 2.2)."""

    def __post_init__(self) -> None:
        for name in ("img_size", "patch_size"):
            if min(pair(getattr(self, name))) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1 pixel")
        for name in ("in_channels", "embed_dim", "depth", "class_depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.num_classes < 0:
            raise ValueError(f"num_classes {self.num_classes} must not be negative; 0 leaves the head out")
        if self.embed_dim % self.num_heads:
            fits = max(1, round(self.embed_dim / self.num_heads)) * self.num_heads
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}; use {fits}")
        for field in fields(self):
            if field.name.endswith("_rate") and not 0 <= getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} {getattr(self, field.name)} must be at least 0 and below 1")

    @property
    def layer_scale(self) -> float:
        """LayerScale's initial value: `init_values`, or the paper's for the depth."""
        if self.init_values is not None:
            return self.init_values
        return next((init for depth, init in INIT_BY_DEPTH if self.depth <= depth), INIT_OF_DEEPEST)


def cait_name(config: CaitConfig) -> str:
    """Return the name of a size of the paper; "cait_custom" for any other shape or patch."""
    shape = CaitSize(config.embed_dim, config.depth, config.num_heads)
    names = [name for name, size in CAIT_SIZES.items() if size == shape]
    return names[0] if names and pair(config.patch_size) == (16, 16) and config.class_depth == 2 else CAIT_CUSTOM


@dataclass(frozen=True, kw_only=True)
class CaitModelConfig(CaitConfig, ModelSection):
    """The `model` section of a CaiT."""

    config_type = CaitConfig
    name: str = "cait_xxs24"
    """One of "cait_xxs24", "cait_xxs36", "cait_xs24", "cait_s24", "cait_s36", "cait_m36", "cait_m48"."""

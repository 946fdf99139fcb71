"""Settings of CvT, the convolutional vision Transformer (Wu et al. 2021)."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair


class CvtSize(NamedTuple):
    """One column of the paper's table 2."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


CVT_SIZES = {  #             widths           depths      heads      parameters at 1000 classes
    "cvt_13": CvtSize((64, 192, 384), (1, 2, 10), (1, 3, 6)),  #        19_997_480
    "cvt_21": CvtSize((64, 192, 384), (1, 4, 16), (1, 3, 6)),  #        31_622_696
    "cvt_w24": CvtSize((192, 768, 1024), (2, 2, 20), (3, 12, 16)),  #  277_196_392
}

CVT_CUSTOM = "cvt_custom"
"""Name of a shape that is not in the table."""

Gelu = Literal["quick_gelu", "gelu"]


def parse_cvt_name(name: str) -> dict[str, Any] | None:
    """Return the CvtConfig fields that a name decides; None for a name that does not start with "cvt_".

    "cvt_w24_384" is "cvt_w24" for images of 384 pixels. Raises ValueError for another size.
    """
    if not name.startswith("cvt_"):
        return None
    if name == CVT_CUSTOM:
        return {}
    size, side = re.fullmatch(r"(.*?)(?:_(\d{3,}))?", name).groups()  # type: ignore[union-attr]
    if size not in CVT_SIZES:
        raise ValueError(f'model "{name}" is none of {", ".join(CVT_SIZES)}; "cvt_13_384" is a name too')
    return {**CVT_SIZES[size]._asdict(), **({"img_size": int(side)} if side else {})}


@dataclass(frozen=True, kw_only=True)
class CvtConfig:
    """Shape of a CvT. The defaults are CvT-13."""

    img_size: int | Pair = 224
    """Image side in pixels, or (height, width), of the training images; the model accepts any size of 3 pixels and more."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    embed_dims: tuple[int, ...] = (64, 192, 384)
    """Width of each stage."""
    depths: tuple[int, ...] = (1, 2, 10)
    """Blocks of each stage."""
    num_heads: tuple[int, ...] = (1, 3, 6)
    """Attention heads of each stage; each must divide the stage's width."""
    kv_stride: int = 2
    """Stride of the convolutions to key and value; each side of the map that is looked at is as much smaller."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over the stage's width."""
    mlp: Gelu = "quick_gelu"
    """MLP activation: GELU's sigmoid form, which the paper's code and its published weights have, or GELU (transformers)."""
    qkv_bias: bool = True
    """Bias in the projections to query, key and value."""
    final_norm: bool = True
    """Norm after the last block; false: transformers' CvtModel has none."""
    norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights."""
    proj_drop_rate: float = 0.0
    """Dropout after attention and MLP."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; it rises linearly from 0 over the last stage, and earlier stages have none."""

    def __post_init__(self) -> None:
        counts = {len(self.embed_dims), len(self.depths), len(self.num_heads)}
        if len(counts) != 1 or not self.depths:
            raise ValueError(
                f"embed_dims {self.embed_dims}, depths {self.depths} and num_heads {self.num_heads} must have one number for "
                "each stage"
            )
        if min(*self.embed_dims, *self.depths, *self.num_heads) < 1:
            raise ValueError(
                f"embed_dims {self.embed_dims}, depths {self.depths} and num_heads {self.num_heads} must be at least 1 in "
                "every stage"
            )
        for name in ("in_channels", "kv_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.num_classes < 0:
            raise ValueError(f"num_classes {self.num_classes} must not be negative; 0 leaves the head out")
        if self.mlp not in get_args(Gelu):
            raise ValueError(f'mlp "{self.mlp}" is none of {", ".join(get_args(Gelu))}')
        for stage, (width, heads) in enumerate(zip(self.embed_dims, self.num_heads, strict=True)):
            if width % heads:
                raise ValueError(f"num_heads {heads} does not divide the width {width} of stage {stage}")
        for field in fields(self):
            if field.name.endswith("_rate") and not 0 <= getattr(self, field.name) < 1:
                raise ValueError(f"{field.name} {getattr(self, field.name)} must be at least 0 and below 1")


def cvt_name(config: CvtConfig) -> str:
    """Return the name of a size of the paper; "cvt_custom" for any other shape."""
    shape = CvtSize(config.embed_dims, config.depths, config.num_heads)
    names = [name for name, size in CVT_SIZES.items() if size == shape]
    return names[0] if names and config.kv_stride == 2 else CVT_CUSTOM


@dataclass(frozen=True, kw_only=True)
class CvtModelConfig(CvtConfig, ModelSection):
    """The `model` section of a CvT."""

    config_type = CvtConfig
    name: str = "cvt_13"
    """One of "cvt_13", "cvt_21", "cvt_w24"."""

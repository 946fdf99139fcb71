"""Settings of a BEiT (Bao et al. 2022), BEiT v2 (Peng et al. 2022) and data2vec's image model (Baevski et al. 2022)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vitrail.settings.model import ModelSection
from vitrail.settings.values import pair
from vitrail.settings.vit import ViTConfig


class BeitSize(NamedTuple):
    """One row of the paper's sizes, those of ViT."""

    embed_dim: int
    depth: int
    num_heads: int
    init_values: float


BEIT_SIZES = {  #          width  depth  heads  LayerScale      parameters at 224 px, 1000 classes
    "beit_b16": BeitSize(768, 12, 12, 0.1),  #                   86_530_984
    "beit_l16": BeitSize(1024, 24, 16, 1e-5),  #                304_430_568
}

BEIT_CUSTOM = "beit_custom"
"""Name of a shape that is not in the table."""
_LONG_NAMES = {"base": "b", "large": "l"}
_V2_INIT_VALUES = 1e-5  # of both sizes of BEiT v2


def parse_beit_name(name: str) -> dict[str, Any] | None:
    """Return the BeitConfig fields that a name decides; None for a name that starts with neither "beit_" nor "beitv2_".

    "beit_b16" and timm's "beit_base_patch16_224" are names of the same model; "beitv2_base_patch16_224" has another initial
    LayerScale. Raises ValueError for another size.
    """
    if name == BEIT_CUSTOM:
        return {}
    if not name.startswith(("beit_", "beitv2_")):
        return None
    long = re.fullmatch(r"beit(v2)?_([a-z]+)_patch(\d+)(?:_(\d+))?", name)
    short = re.fullmatch(r"beit(v2)?_([a-z]+?)(\d+)", name)
    match = long or short
    size = f"beit_{_LONG_NAMES.get(match[2], match[2])}16" if match else name
    if match is None or size not in BEIT_SIZES or int(match[3]) < 1:
        names = ", ".join(BEIT_SIZES)
        raise ValueError(f'model "{name}" is none of {names}; timm\'s "beit_base_patch16_224" is a name too')
    fields: dict[str, Any] = {**BEIT_SIZES[size]._asdict(), "patch_size": int(match[3])}
    if match[1]:
        fields["init_values"] = _V2_INIT_VALUES
    if long and long[4]:
        fields["img_size"] = int(long[4])
    return fields


@dataclass(frozen=True, kw_only=True)
class BeitConfig(ViTConfig):
    """Shape of a BEiT: a plain ViT's fields, and those below. The defaults are BEiT-B/16, fine-tuned."""

    qkv_bias: bool = True
    """Bias of queries and values; keys have none."""
    relative_bias: Literal["block", "shared", "both", "none"] = "block"
    """Relative position bias: a table in each block, one for all blocks (during pre-training), both, or none."""
    pos_embed: Literal["learn", "sincos2d", "none"] = "none"
    """Absolute position embedding, beside the relative one: learned, fixed 2-D sine-cosine, or none."""
    init_values: float | None = 0.1
    """LayerScale's initial value (Touvron et al. 2021); None leaves LayerScale out."""
    pool: Literal["cls", "avg", "cls+avg", "map"] = "avg"
    """Pooling: the class token, the mean of the patch tokens, both concatenated, or attention pooling."""
    fc_norm: bool = True
    """LayerNorm after the pooling instead of before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relative_bias not in _BIASES:
            raise ValueError(f'relative_bias "{self.relative_bias}" is none of {", ".join(_BIASES)}')
        for name in _PLAIN:
            if getattr(self, name) != getattr(ViTConfig, name):
                raise ValueError(f"{name} {getattr(self, name)} is no part of a BEiT; leave it at {getattr(ViTConfig, name)}")


_BIASES = ("block", "shared", "both", "none")
_PLAIN = ("head_dim", "mlp", "qk_norm", "class_token", "dist_token", "reg_tokens", "stem", "patch_norm", "pre_norm")
"""Fields that a BEiT has no other value of."""


def beit_name(config: BeitConfig) -> str:
    """Return the name of a size of the paper; "beit_custom" for any other shape or patch."""
    shape = (config.embed_dim, config.depth, config.num_heads)
    names = [name for name, size in BEIT_SIZES.items() if size[:3] == shape]
    return names[0] if names and pair(config.patch_size) == (16, 16) and config.mlp_ratio == 4 else BEIT_CUSTOM


@dataclass(frozen=True, kw_only=True)
class BeitModelConfig(BeitConfig, ModelSection):
    """The `model` section of a BEiT."""

    config_type = BeitConfig
    name: str = "beit_b16"
    """One of "beit_b16", "beit_l16"."""

"""Settings of a ViTDet (Li et al. 2022), and of the encoders of SAM (Kirillov et al. 2023) and SAM 3 (Carion et al. 2025)."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair, nearest, pair


class VitDetSize(NamedTuple):
    """One row of the papers' sizes, those of ViT."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int


VITDET_SIZES = {  #             width depth heads patch     parameters at 1024 px (SAM 3: 1008 px), 1000 classes
    "vitdet_b16": VitDetSize(768, 12, 12, 16),  #            89_653_992
    "vitdet_l16": VitDetSize(1024, 24, 16, 16),  #          308_452_328
    "vitdet_h16": VitDetSize(1280, 32, 16, 16),  #          637_391_080
    "sam_b16": VitDetSize(768, 12, 12, 16),  #               89_927_912
    "sam_l16": VitDetSize(1024, 24, 16, 16),  #             308_535_272
    "sam_h16": VitDetSize(1280, 32, 16, 16),  #             637_283_048
    "sam3_l14": VitDetSize(1024, 32, 16, 14),  #            447_261_672
}

VITDET_CUSTOM = "vitdet_custom"
"""Name of a shape that is not in the table."""
_KINDS: dict[str, dict[str, Any]] = {  # fields by the first part of a name
    "sam": {"neck": "conv", "img_size": 1024},
    "vitdet": {"neck": "norm", "img_size": 1024},
    "sam3": {
        "neck": "none",
        "img_size": 1008,
        "mlp_ratio": 4.625,
        "window_size": 24,
        "relative": "rotary",
        "pre_norm": True,
        "pos_grid": 24,
        "pos_resize": "tile",
        "norm_eps": 1e-6,
    },
}
_ROWS: dict[str, dict[str, Any]] = {
    **{name: {**size._asdict(), **_KINDS[name.partition("_")[0]]} for name, size in VITDET_SIZES.items()},
    VITDET_CUSTOM: {},
}
_TIMM_ROWS: dict[str, dict[str, Any]] = {
    "samvit_base_patch16": _ROWS["sam_b16"],
    "samvit_large_patch16": _ROWS["sam_l16"],
    "samvit_huge_patch16": _ROWS["sam_h16"],
    "samvit_base_patch16_224": {**_ROWS["vitdet_b16"], "pos_embed": "none", "img_size": 224},
}


def parse_vitdet_name(name: str) -> dict[str, Any] | None:
    """Return the VitDetConfig fields that a name decides; None for another family's name.

    "sam_b16" and timm's "samvit_base_patch16" are names of the same model. Raises ValueError for another size.
    """
    rows = {**_ROWS, **_TIMM_ROWS}
    if name in rows:
        return dict(rows[name])
    if not re.match(r"(vitdet|sam|sam3|samvit)_", name):
        return None
    names = ", ".join(VITDET_SIZES)
    raise ValueError(
        f'model "{name}" is none of {names}{nearest(name, list(rows))}; timm\'s "samvit_base_patch16" is a name too'
    )


def spread_blocks(depth: int) -> tuple[int, ...]:
    """Return four blocks that are evenly spread over all, the last among them (ViTDet, section 3); fewer if there are fewer."""
    return tuple(dict.fromkeys(math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)))


@dataclass(frozen=True, kw_only=True)
class VitDetConfig:
    """Shape of a ViTDet. The defaults are SAM's image encoder of size B/16, as timm has it."""

    img_size: int | Pair = 1024
    """Image side in pixels, or (height, width)."""
    patch_size: int | Pair = 16
    """Patch side in pixels, or (height, width)."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    embed_dim: int = 768
    """Width D."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads; must divide embed_dim."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over embed_dim."""
    qkv_bias: bool = True
    """Bias of queries, keys and values."""
    window_size: int = 14
    """Side of a window, in patches; 0: every block attends to the whole image."""
    global_blocks: tuple[int, ...] | None = None
    """Blocks that attend to the whole image, counted from 0; null: four, evenly spread, the last among them."""
    relative: Literal["decomposed", "rotary", "none"] = "decomposed"
    """Relative positions in attention: learned tables of row and column offsets, added to the scores (Li et al. 2022, MViTv2);
    rotary, counted in a window and stretched over the whole image elsewhere (SAM 3); or none."""
    pos_embed: Literal["learn", "none"] = "learn"
    """Absolute position embedding."""
    pos_grid: int | Pair | None = None
    """Patch grid of the absolute positions, if it is not the image's."""
    pos_resize: Literal["bicubic", "cubic", "tile"] = "bicubic"
    """Absolute positions at another grid: bicubic, antialiased (timm) or not (ViTDet); or repeated (SAM 3)."""
    pre_norm: bool = False
    """LayerNorm before the blocks; then the patch projection has no bias."""
    residual_blocks: tuple[int, ...] = ()
    """Blocks that end with a residual bottleneck of convolutions, ViTDet's other way to join windows (section 3)."""
    neck: Literal["conv", "norm", "none"] = "conv"
    """After the blocks: SAM's convolutions of 1x1 and 3x3, each with a LayerNorm; one LayerNorm; or nothing."""
    neck_channels: int = 256
    """Channels after neck "conv"."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    pos_drop_rate: float = 0.0
    """Dropout after positions are added."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights."""
    proj_drop_rate: float = 0.0
    """Dropout after attention and MLP."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; it rises linearly from 0 at the first."""
    norm_eps: float = 1e-5
    """Epsilon of the blocks' LayerNorms: timm's; the papers' code and transformers have 1e-6."""

    def __post_init__(self) -> None:
        for name in ("in_channels", "embed_dim", "depth", "num_heads", "neck_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("num_classes", "window_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative; 0 is none")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f'{name} "{getattr(self, name)}" is none of {", ".join(get_args(hint))}')
        for name in ("global_blocks", "residual_blocks"):
            if wrong := [block for block in getattr(self, name) or () if not 0 <= block < self.depth]:
                raise ValueError(f"{name} has {wrong[0]}, which does not exist; the blocks are 0 to {self.depth - 1}")
        if self.relative == "rotary" and self.head_width % 4:
            raise ValueError(f"a head of {self.head_width} channels can't be turned along two axes; use a multiple of 4")
        if self.relative == "rotary" and not self.window_size:
            raise ValueError('relative "rotary" counts in windows, and window_size is 0; give their side')
        if self.pos_grid is not None and (self.pos_embed == "none" or min(pair(self.pos_grid)) < 1):
            raise ValueError(f'pos_grid {self.pos_grid} must be at least 1 patch, and needs pos_embed "learn"; leave it out')

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.embed_dim // self.num_heads

    @property
    def embedding_dim(self) -> int:
        """Channels after the neck, the width of the embedding."""
        return self.neck_channels if self.neck == "conv" else self.embed_dim

    def is_global(self, block: int) -> bool:
        """Return whether a block attends to the whole image."""
        chosen = spread_blocks(self.depth) if self.global_blocks is None else self.global_blocks
        return self.window_size == 0 or block in chosen


def vitdet_name(config: VitDetConfig) -> str:
    """Return the name of a published shape at any image size; "vitdet_custom" for another."""
    return _names().get(_key(config), VITDET_CUSTOM)


def _key(config: VitDetConfig) -> tuple[Any, ...]:
    """Return what makes the shape; the numerics of a library are no part of it."""
    free = ("img_size", "in_channels", "num_classes", "global_blocks", "pos_grid", "pos_resize", "norm_eps")
    values = [value for name, value in vars(config).items() if name not in free and not name.endswith("_rate")]
    return (*values, *(config.is_global(block) for block in range(config.depth)))


@functools.cache
def _names() -> dict[tuple[Any, ...], str]:
    return {_key(VitDetConfig(**row)): name for name, row in (_TIMM_ROWS | _ROWS).items() if row}


@dataclass(frozen=True, kw_only=True)
class VitDetModelConfig(VitDetConfig, ModelSection):
    """The `model` section of a ViTDet."""

    config_type = VitDetConfig
    name: str = "sam_b16"
    """One of "vitdet_b16", "vitdet_l16", "vitdet_h16", "sam_b16", "sam_l16", "sam_h16", "sam3_l14"."""

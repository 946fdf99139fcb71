"""Settings of a Swin Transformer V2-CR (Liu et al. 2022, in Christoph Reich's implementation, as timm has it)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from vitrail.settings.model import ModelSection
from vitrail.settings.swin import SwinShape
from vitrail.settings.values import Pair, pair


class SwinV2CrSize(NamedTuple):
    """One size, as timm has it. The paper gives no heads of the two largest."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    extra_norm_period: int = 0
    extra_norm_stage: bool = False


_S, _G = (2, 2, 18, 2), (2, 2, 42, 2)
SWIN_V2_CR_SIZES = {  #            width  depths  heads  norm after so many, and after stages    parameters at 1000 classes
    "swinv2_cr_t": SwinV2CrSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),  #                         28_332_124
    "swinv2_cr_t_ns": SwinV2CrSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 0, True),  #             28_333_468
    "swinv2_cr_s": SwinV2CrSize(96, _S, (3, 6, 12, 24)),  #                                   49_695_100
    "swinv2_cr_s_ns": SwinV2CrSize(96, _S, (3, 6, 12, 24), 0, True),  #                       49_696_444
    "swinv2_cr_b": SwinV2CrSize(128, _S, (4, 8, 16, 32)),  #                                  87_877_464
    "swinv2_cr_b_ns": SwinV2CrSize(128, _S, (4, 8, 16, 32), 0, True),  #                      87_879_256
    "swinv2_cr_l": SwinV2CrSize(192, _S, (6, 12, 24, 48)),  #                                196_682_512
    "swinv2_cr_h": SwinV2CrSize(352, _S, (8, 16, 32, 64), 6),  #                             657_829_928
    "swinv2_cr_h11": SwinV2CrSize(352, _S, (11, 22, 44, 88), 6),  #                          657_938_780
    "swinv2_cr_g": SwinV2CrSize(512, _G, (16, 32, 64, 128), 6),  #                         2_598_761_896
}

SWIN_V2_CR_CUSTOM = "swinv2_cr_custom"
"""Name of a shape that is not in the table."""
_OTHER_NAMES = {"tiny": "t", "small": "s", "base": "b", "large": "l", "huge": "h", "giant": "g"}
_FORM = re.compile(r"swinv2_cr_([a-z]+\d*?)(_ns)?(?:_(\d+))?")


def parse_swin_v2_cr_name(name: str) -> dict[str, Any] | None:
    """Return the SwinV2CrConfig fields that a name decides; None for a name that does not start with "swinv2_cr_".

    "swinv2_cr_t_ns" and timm's "swinv2_cr_tiny_ns_224" are names of the same model; "ns" has a norm at the end of every
    stage. timm's huge model has other heads at 384 pixels. Raises ValueError for another size.
    """
    if name == SWIN_V2_CR_CUSTOM:
        return {}
    if not name.startswith("swinv2_cr_"):
        return None
    size, fields = name, dict[str, Any]()
    if name not in SWIN_V2_CR_SIZES and (long := _FORM.fullmatch(name)):
        kind, norms, side = long.groups()
        heads = "11" if (kind, side) == ("huge", "384") else ""
        size = f"swinv2_cr_{_OTHER_NAMES.get(kind, kind)}{heads}{norms or ''}"
        fields = {"img_size": int(side)} if side else {}
    if size not in SWIN_V2_CR_SIZES:
        names = ", ".join(SWIN_V2_CR_SIZES)
        raise ValueError(f'model "{name}" is none of {names}; timm\'s "swinv2_cr_tiny_ns_224" is a name too')
    return {**SWIN_V2_CR_SIZES[size]._asdict(), **fields}


@dataclass(frozen=True, kw_only=True)
class SwinV2CrConfig(SwinShape):
    """Shape of a Swin Transformer V2-CR. The defaults are timm's swinv2_cr_tiny_224."""

    window_size: int | Pair | None = None
    """Side of a window in patches, or (height, width); null: the sides of the image's grid of patches over `window_ratio`. A
    stage whose map is smaller at `img_size` has windows of the map's sides."""
    window_ratio: int = 8
    """Side of the grid of patches at `img_size` over that of a window, rounded down, where `window_size` is null."""
    extra_norm_period: int = 0
    """Norm behind every so many blocks of a stage, which keeps the largest models stable; 0: none."""
    extra_norm_stage: bool = False
    """Norm behind the last block of every stage; without it, of the last stage alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size is not None and min(pair(self.window_size)) < 1:
            raise ValueError(f"window_size {self.window_size} must be at least 1")
        if self.window_ratio < 1:
            raise ValueError(f"window_ratio {self.window_ratio} must be at least 1")
        if self.extra_norm_period < 0:
            raise ValueError(f"extra_norm_period {self.extra_norm_period} must not be negative; 0 is none")

    def whole_window(self) -> Pair:
        """Return the height and width of a window where no map is smaller."""
        if self.window_size is not None:
            return pair(self.window_size)
        height, width = self.map_at(0)
        return max(1, height // self.window_ratio), max(1, width // self.window_ratio)

    def window(self, stage: int) -> Pair:
        """Return the height and width of a window in a stage."""
        (height, width), (down, across) = self.whole_window(), self.map_at(stage)
        return min(height, down), min(width, across)

    def shift(self, stage: int) -> Pair:
        """Return how far every other block of a stage shifts its windows: half a window, and 0 along a side of one window."""
        (height, width), (down, across) = self.window(stage), self.map_at(stage)
        return height // 2 if down > height else 0, width // 2 if across > width else 0

    def has_extra_norm(self, stage: int, index: int) -> bool:
        """Return whether a norm stands behind a block of a stage."""
        if self.extra_norm_period and (index + 1) % self.extra_norm_period == 0:
            return True
        last = stage == len(self.depths) - 1 and self.final_norm
        return index + 1 == self.depths[stage] and (self.extra_norm_stage or last)


def swin_v2_cr_name(config: SwinV2CrConfig) -> str:
    """Return the name of a size of timm; "swinv2_cr_custom" for any other shape, patch or window."""
    shape = SwinV2CrSize(*(getattr(config, name) for name in SwinV2CrSize._fields))
    names = [name for name, size in SWIN_V2_CR_SIZES.items() if size == shape]
    usual = (config.patch_size, config.window_size, config.window_ratio, config.final_norm) == (4, None, 8, True)
    return names[0] if names and usual else SWIN_V2_CR_CUSTOM


@dataclass(frozen=True, kw_only=True)
class SwinV2CrModelConfig(SwinV2CrConfig, ModelSection):
    """The `model` section of a Swin Transformer V2-CR."""

    config_type = SwinV2CrConfig
    name: str = "swinv2_cr_t"
    """One of "swinv2_cr_t" to "swinv2_cr_g", "swinv2_cr_t_ns", "swinv2_cr_s_ns" and "swinv2_cr_b_ns"."""

"""Settings of a Swin Transformer of version 2 (Liu et al. 2022)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vitrail.settings.model import ModelSection
from vitrail.settings.swin import SwinConfig, SwinSize, require_stages
from vitrail.settings.values import Pair

SWIN_V2_SIZES = {  #          width  depths         heads            parameters at 1000 classes, any window
    "swinv2_t": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),  #        28_347_154
    "swinv2_s": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),  #       49_728_418
    "swinv2_b": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),  #      87_918_816
    "swinv2_l": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),  #    196_739_932
}

SWIN_V2_CUSTOM = "swinv2_custom"
"""Name of a shape that is not in the table."""
_OTHER_NAMES = {"tiny": "t", "small": "s", "base": "b", "large": "l"}
_FORM = re.compile(r"swinv2_([a-z]+)(?:_patch(\d+))?_window(?:(\d+)to)?(\d+)(?:_(?:(\d+)to)?(\d+))?")


def parse_swin_v2_name(name: str) -> dict[str, Any] | None:
    """Return the SwinV2Config fields that a name decides; None for another family's.

    "swinv2_t", torchvision's "swin_v2_t" and timm's "swinv2_tiny_window8_256" are names of the same model. In a name with two
    windows, "swinv2_base_window12to16_192to256", the first one is that of the pre-training. The paper's code cuts the window
    of a stage down to its map, 16 to 8 in the last stage at 256 pixels, and a long name decides the same. Raises ValueError
    for another size.
    """
    if name == SWIN_V2_CUSTOM:
        return {}
    if not name.startswith(("swinv2_", "swin_v2_")) or name.startswith("swinv2_cr_"):
        return None
    fields: dict[str, Any] = {}
    if long := _FORM.fullmatch(name):
        kind, patch, before, window, _, side = long.groups()
        fields = {"patch_size": int(patch or 4), "window_size": int(window)}
        if side:
            fields["img_size"] = int(side)
            fields["window_sizes"] = windows_at(fields["window_size"], img_size=int(side), patch_size=fields["patch_size"])
        if before:
            windows = fields.get("window_sizes") or 4 * (int(window),)
            fields["pretrained_window_sizes"] = tuple(one * int(before) // int(window) for one in windows)
    else:
        kind = name.removeprefix("swinv2_").removeprefix("swin_v2_")
    size = f"swinv2_{_OTHER_NAMES.get(kind, kind)}"
    if size not in SWIN_V2_SIZES:
        names = ", ".join(SWIN_V2_SIZES)
        raise ValueError(f'model "{name}" is none of {names}; timm\'s "swinv2_tiny_window8_256" is a name too')
    return {**SWIN_V2_SIZES[size]._asdict(), **fields}


def windows_at(window: int, *, img_size: int, patch_size: int, stages: int = 4) -> tuple[int, ...]:
    """Return the window of each stage in the paper's code: as large as the map, where the map is smaller; () if none is."""
    maps = [-(-img_size // (patch_size * 2**stage)) for stage in range(stages)]
    return tuple(min(window, side) for side in maps) if min(maps) < window else ()


@dataclass(frozen=True, kw_only=True)
class SwinV2Config(SwinConfig):
    """Shape of a Swin Transformer of version 2. The defaults are SwinV2-T with windows of 8."""

    img_size: int | Pair = 256
    """Image side in pixels, or (height, width), of the training images; the model accepts any size."""
    window_size: int = 8
    """Side of a window, in patches."""
    pretrained_window_sizes: tuple[int, ...] = ()
    """Side of a window in each stage in pre-training, which relative positions are measured by; () or 0: the stage's own."""
    qkv_bias: bool = True
    """Bias of queries and values; keys have none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pretrained = self.pretrained_window_sizes
        require_stages("pretrained_window_sizes", pretrained, stages=len(self.depths), least=0)

    def pretrained_window(self, stage: int) -> int:
        """Return the side of a window that relative positions of a stage are measured by."""
        return (self.pretrained_window_sizes and self.pretrained_window_sizes[stage]) or self.window(stage)


def swin_v2_name(config: SwinV2Config) -> str:
    """Return the name of a size of the paper; "swinv2_custom" for any other shape, patch or window."""
    shape = SwinSize(config.embed_dim, config.depths, config.num_heads)
    names = [name for name, size in SWIN_V2_SIZES.items() if size == shape]
    windows = {config.window(stage) for stage in range(len(config.depths))}
    return names[0] if names and config.patch_size == 4 and windows == {8} else SWIN_V2_CUSTOM


@dataclass(frozen=True, kw_only=True)
class SwinV2ModelConfig(SwinV2Config, ModelSection):
    """The `model` section of a Swin Transformer of version 2."""

    config_type = SwinV2Config
    name: str = "swinv2_t"
    """One of "swinv2_t", "swinv2_s", "swinv2_b", "swinv2_l"."""

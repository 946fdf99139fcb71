"""Settings of a Swin Transformer (Liu et al. 2021), and those that its later versions share."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair, pair


class SwinSize(NamedTuple):
    """One row of the paper's table 7."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


SWIN_SIZES = {  #           width  depths         heads            parameters at 1000 classes, window 7
    "swin_t": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),  #        28_288_354
    "swin_s": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),  #       49_606_258
    "swin_b": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),  #      87_768_224
    "swin_l": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),  #    196_532_476
}


SWIN_CUSTOM = "swin_custom"
"""Name of a shape that is not in the table."""
_LONG_NAMES = {"tiny": "swin_t", "small": "swin_s", "base": "swin_b", "large": "swin_l"}


def parse_swin_name(name: str) -> dict[str, Any] | None:
    """Return the SwinConfig fields that a name decides; None for a name that does not start with "swin_".

    "swin_t" and timm's "swin_tiny_patch4_window7_224" are names of the same model. Raises ValueError for another size.
    """
    if name == SWIN_CUSTOM:
        return {}
    if long := re.fullmatch(r"swin_([a-z]+)_patch(\d+)_window(\d+)(?:_(\d+))?", name):
        size = _LONG_NAMES.get(long[1], long[1])
        fields: dict[str, Any] = {"patch_size": int(long[2]), "window_size": int(long[3])}
        if long[4]:
            fields["img_size"] = int(long[4])
    elif name.startswith("swin_"):
        size, fields = name, {"patch_size": 4, "window_size": 7}
    else:
        return None
    if size not in SWIN_SIZES:
        names = ", ".join(SWIN_SIZES)
        raise ValueError(f'model "{name}" is none of {names}; timm\'s "swin_tiny_patch4_window7_224" is a name too')
    return {**SWIN_SIZES[size]._asdict(), **fields}


def require_stages(name: str, sides: tuple[int, ...], *, stages: int, least: int) -> None:
    """Raise ValueError for sides of windows that are not one for each stage, or below `least`; () is valid."""
    if sides and (len(sides) != stages or min(sides) < least):
        raise ValueError(f"{name} {sides} must have one number of at least {least} for each of {stages} stages")


@dataclass(frozen=True, kw_only=True)
class SwinShape:
    """Shape of a Swin Transformer of any version, without its windows."""

    img_size: int | Pair = 224
    """Image side in pixels, or (height, width), of the training images; the model accepts any size."""
    patch_size: int = 4
    """Patch side in pixels."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    embed_dim: int = 96
    """Width C of the first stage; it doubles from stage to stage."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage; each must divide the stage's width."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over the stage's width."""
    final_norm: bool = True
    """Norm after the last block; false: Donut's encoder has none."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights."""
    proj_drop_rate: float = 0.0
    """Dropout after attention and MLP."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; it rises linearly from 0 at the first."""
    norm_eps: float = 1e-5
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must have one number for each stage")
        for name in ("patch_size", "in_channels", "embed_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if min(*self.depths, *self.num_heads) < 1:
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must be at least 1 in every stage")
        if self.num_classes < 0:
            raise ValueError(f"num_classes {self.num_classes} must not be negative; 0 leaves the head out")
        for stage, heads in enumerate(self.num_heads):
            if self.width(stage) % heads:
                raise ValueError(f"num_heads {heads} does not divide the width {self.width(stage)} of stage {stage}")

    @abstractmethod
    def window(self, stage: int) -> int | Pair:
        """Return the side of a window in a stage, or its (height, width)."""

    def width(self, stage: int) -> int:
        """Return the channels of a stage."""
        return self.embed_dim * 2**stage

    def map_at(self, stage: int) -> Pair:
        """Return the height and width of a stage's map at the config's image size."""
        height, width = pair(self.img_size)
        step = self.patch_size * 2**stage
        return -(-height // step), -(-width // step)


@dataclass(frozen=True, kw_only=True)
class SwinConfig(SwinShape):
    """Shape of a Swin Transformer. The defaults are Swin-T."""

    window_size: int = 7
    """Side of a window, in patches."""
    window_sizes: tuple[int, ...] = ()
    """Side of a window in each stage, where they differ; () is `window_size` in all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size < 1:
            raise ValueError(f"window_size {self.window_size} must be at least 1")
        require_stages("window_sizes", self.window_sizes, stages=len(self.depths), least=1)
        if self.window_sizes and max(self.window_sizes) != self.window_size:
            which = f"window_size {self.window_size} is not the largest of window_sizes {self.window_sizes}"
            raise ValueError(f"{which}; set both, or window_sizes to ()")

    def window(self, stage: int) -> int:
        """Return the side of a window in a stage."""
        return self.window_sizes[stage] if self.window_sizes else self.window_size


def swin_name(config: SwinConfig) -> str:
    """Return the name of a size of the paper; "swin_custom" for any other shape, patch or window."""
    shape = SwinSize(config.embed_dim, config.depths, config.num_heads)
    names = [name for name, size in SWIN_SIZES.items() if size == shape]
    usual = (config.patch_size, config.window_size, config.window_sizes) == (4, 7, ())
    return names[0] if names and usual else SWIN_CUSTOM


@dataclass(frozen=True, kw_only=True)
class SwinModelConfig(SwinConfig, ModelSection):
    """The `model` section of a Swin Transformer."""

    config_type = SwinConfig
    name: str = "swin_t"
    """One of "swin_t", "swin_s", "swin_b", "swin_l"."""

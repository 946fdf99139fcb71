"""Shape of a plain Vision Transformer: the table of sizes, names such as "B/16", and every field."""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair, nearest, pair


class Size(NamedTuple):
    """Row of the table of sizes."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0


SIZES = {  #          width  depth  heads  MLP ratio       parameters at 224 px, 1000 classes
    "Ti": Size(192, 12, 3),  #                              5_717_416  at /16
    "S": Size(384, 12, 6),  #                              22_050_664  at /16
    "B": Size(768, 12, 12),  #                             86_567_656  at /16
    "L": Size(1024, 24, 16),  #                           304_326_632  at /16
    "H": Size(1280, 32, 16),  #                           632_045_800  at /14
    "g": Size(1408, 40, 16, 48 / 11),  #                1_012_611_432  at /14 (Zhai et al. 2022, table 2)
}
PATCHES = (4, 8, 14, 16, 32)
RECIPES: dict[str, dict[str, Any]] = {  # fields that papers of other recipes for the same shape set
    "deit3": {"no_embed_class": True, "init_values": 1e-6},  # Touvron et al. 2022
    "flexivit": {"no_embed_class": True, "patch_size": 16, "img_size": 240},  # Beyer et al. 2023, for train.patch_sizes
}
RECIPE_NAMES = ("deit3_s16", "deit3_b16", "deit3_l16", "deit3_h14", "flexivit_s", "flexivit_b", "flexivit_l")
CUSTOM = "custom"
_LONG_NAMES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
_LETTERS = {"s": "S", "b": "B", "l": "L", "h": "H"}


def parse_vit_name(name: str) -> dict[str, Any] | None:
    """Return the ViTConfig fields that a name decides; None for a name of another form.

    "B/16", "Ti/4" and the field's spelling, "vit_base_patch16_224", are names of the same models. A patch may be any whole
    number; `PATCHES` lists the ones in common use. A "+" behind the size asks for the convolutional stem: "S+/16".
    "deit3_s16" or "deit3_small_patch16_224", and "flexivit_s" or "flexivit_small", name the models of those papers. "custom" is
    the name of a shape that has none, and decides nothing. Raises ValueError for a size that does not exist.
    """
    if name == CUSTOM:
        return {}
    if short := re.fullmatch(r"([A-Za-z]+)(\+?)/(\d+)", name):
        size, stem, patch = short.groups()
        fields: dict[str, Any] = {"patch_size": int(patch)}
        if stem:
            fields["stem"] = "conv"
    elif long := re.fullmatch(r"vit_([a-z]+)_patch(\d+)(?:_(\d+))?", name):
        size, fields = _LONG_NAMES.get(long[1], long[1]), {"patch_size": int(long[2])}
        if long[3]:
            fields["img_size"] = int(long[3])
    elif other := re.fullmatch(r"(?:(deit3)_([a-z]+?)(?:_patch)?(\d+)(?:_(\d+))?|(flexivit)_([a-z]+))", name):
        recipe, size = other[1] or other[5], other[2] or other[6]
        size, fields = _LETTERS.get(size, _LONG_NAMES.get(size, size)), dict(RECIPES[recipe])
        numbers = {"patch_size": other[3], "img_size": other[4]}
        fields |= {field: int(number) for field, number in numbers.items() if number}
    else:
        return None
    if size not in SIZES:
        fold = {s.lower(): s for s in SIZES}
        hint = f'; did you mean "{fold[size.lower()]}"?' if size.lower() in fold else ""
        raise ValueError(f'model "{name}": size "{size}" is none of {", ".join(SIZES)}{hint}')
    if fields["patch_size"] < 1:
        raise ValueError(f'model "{name}": the patch must be at least 1 pixel')
    return {**SIZES[size]._asdict(), **fields}


def vit_name(config: ViTConfig) -> str:
    """Return the name of a model's size and patch; "custom" for a shape without a name."""
    patch = pair(config.patch_size)
    shape = Size(config.embed_dim, config.depth, config.num_heads, config.mlp_ratio)
    names = [name for name, size in SIZES.items() if size == shape and patch[0] == patch[1]]
    return f"{names[0]}/{patch[0]}" if names else CUSTOM


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Shape of a plain Vision Transformer. The defaults are B/16 of Dosovitskiy et al. 2021."""

    img_size: int | Pair = 224
    """Image side in pixels, or (height, width)."""
    patch_size: int | Pair = 16
    """Patch side in pixels, or (height, width)."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    embed_dim: int = 768
    """Width D of every token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads; must divide embed_dim, unless head_dim is set."""
    head_dim: int | None = None
    """Width of a head; None is embed_dim / num_heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over embed_dim."""
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "swiglu"] = "gelu"
    """MLP activation: GELU, its tanh form (JAX's default), its sigmoid form (OpenAI's CLIP), ReLU (Vaswani et al. 2017), or
    SwiGLU (Shazeer 2020)."""
    qkv_bias: bool = True
    """Bias in the query, key and value projection."""
    qk_norm: bool = False
    """LayerNorm on queries and keys, per head (Dehghani et al. 2023)."""
    init_values: float | None = None
    """LayerScale's initial value (Touvron et al. 2021); None leaves LayerScale out."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm; transformers' ViT has 1e-12, CLIP 1e-5."""
    pre_norm: bool = False
    """LayerNorm between embedding and blocks, and no bias in the patch projection (CLIP: Radford et al. 2021)."""
    patch_norm: bool = False
    """LayerNorm on each patch's pixels and on its token (the library vit-pytorch)."""
    final_norm: bool = True
    """LayerNorm after the last block."""
    fc_norm: bool = False
    """LayerNorm after the pooling instead of before it (BEiT, MAE's fine-tuning)."""
    class_token: bool = True
    """Prepend a learned class token."""
    dist_token: bool = False
    """Prepend DeiT's distillation token, which has its own head (Touvron et al. 2021)."""
    reg_tokens: int = 0
    """Register tokens (Darcet et al. 2024)."""
    pos_embed: Literal["learn", "sincos2d", "none"] = "learn"
    """Position embedding: learned, fixed 2-D sine-cosine, or none."""
    no_embed_class: bool = False
    """Leave out the positions of class and distillation token (DeiT III, FlexiViT); registers never have one."""
    pool: Literal["cls", "avg", "cls+avg", "map"] = "cls"
    """Pooling: the class token, the mean of the patch tokens, both concatenated (DINOv2), or attention pooling."""
    pool_include_prefix: bool = False
    """Include the prefix tokens in mean and attention pooling."""
    head: Literal["linear", "mlp"] = "linear"
    """Head: linear, or with one hidden layer and tanh as in the paper's pre-training."""
    stem: Literal["patch", "conv"] = "patch"
    """Patch embedding: one patch-sized convolution, or a stack of 3x3 convolutions (Xiao et al. 2021)."""
    drop_rate: float = 0.0
    """Dropout before the head."""
    pos_drop_rate: float = 0.0
    """Dropout after the position embedding."""
    proj_drop_rate: float = 0.0
    """Dropout after attention and MLP."""
    attn_drop_rate: float = 0.0
    """Dropout of attention weights."""
    patch_drop_rate: float = 0.0
    """Share of the patch tokens dropped in training (Liu et al. 2023)."""
    drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; it rises linearly from 0 at the first (Huang et al. 2016)."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("img_size", "patch_size"):
            if min(pair(getattr(self, name))) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1 pixel")
        for name in ("in_channels", "embed_dim", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim {self.head_dim} must be at least 1")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps {self.norm_eps} must be above 0")
        for name in ("num_classes", "depth", "reg_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")
        if self.embed_dim % self.num_heads and (self.head_dim is None or self.pool == "map"):
            fits = max(1, round(self.embed_dim / self.num_heads)) * self.num_heads
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}; use {fits}")
        if self.pool in ("cls", "cls+avg") and not self.class_token:
            raise ValueError(f'pool "{self.pool}" needs class_token true; use pool "avg" or "map" without a class token')
        if self.pool == "cls+avg" and (self.fc_norm or self.dist_token):
            raise ValueError('pool "cls+avg" goes neither with fc_norm nor with dist_token; use pool "cls" or "avg"')
        if self.fc_norm and not self.final_norm:
            raise ValueError("fc_norm true places the last norm, and final_norm false leaves it out; set one of them")
        if self.patch_norm and self.stem != "patch":
            raise ValueError(f'patch_norm true needs stem "patch", not "{self.stem}"')
        if self.dist_token and not self.class_token:
            raise ValueError("dist_token true needs class_token true")
        if self.pos_embed == "sincos2d" and self.embed_dim % 4:
            raise ValueError(f'embed_dim {self.embed_dim} is not a multiple of 4, which pos_embed "sincos2d" needs')
        for f in dataclasses.fields(self):
            if f.name.endswith("_rate") and not 0 <= getattr(self, f.name) < 1:
                raise ValueError(f"{f.name} {getattr(self, f.name)} must be at least 0 and below 1")


@functools.cache
def choices_of_a_model(config: type[ViTConfig] = ViTConfig) -> dict[str, tuple[str, ...]]:
    """Return the accepted words of each field of a config that takes words."""
    return {name: get_args(hint) for name, hint in get_type_hints(config).items() if get_origin(hint) is Literal}


def check_choices(config: ViTConfig) -> None:
    """Raise ValueError for a field whose word is none of those that it takes."""
    for name, choices in choices_of_a_model(type(config)).items():  # type: ignore[arg-type]
        if getattr(config, name) not in choices:
            suggestion = nearest(str(getattr(config, name)), list(choices))
            raise ValueError(f'{name} "{getattr(config, name)}" is none of {", ".join(choices)}{suggestion}')


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ViTConfig, ModelSection):
    """The `model` section: shape and weights of the Transformer; a name resets the other fields."""

    config_type = ViTConfig
    name: str = "B/16"
    """Size and patch, "Ti/4" to "g/14", or "S+/16" with a convolutional stem; "deit3_s16", "flexivit_s"; "swin_t" to "swin_l";
    "torchvision:resnet50" or "timm:…" for a model of those libraries."""

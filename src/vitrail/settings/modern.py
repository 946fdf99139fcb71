"""Shape of a modern Vision Transformer: rotary positions, gated MLPs, RMSNorm, post-norm; table of published models."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from vitrail.settings.model import ModelSection
from vitrail.settings.modern_sizes import MODERN_ROWS
from vitrail.settings.modern_sizes import MODERN_SIZES as MODERN_SIZES
from vitrail.settings.values import Pair, nearest, pair
from vitrail.settings.vit import ViTConfig

MODERN_CUSTOM = "modern_custom"
"""Name of a shape that is not in the table."""


@dataclass(frozen=True, kw_only=True)
class ModernConfig(ViTConfig):
    """Shape of a modern Vision Transformer: a plain one's fields, and those below. The defaults are DINOv3-B/16."""

    norm_eps: float = 1e-5
    """Epsilon of every norm."""
    init_values: float | None = 1e-5
    """LayerScale's initial value (Touvron et al. 2021); None leaves LayerScale out."""
    reg_tokens: int = 4
    """Register tokens (Darcet et al. 2024)."""
    pos_embed: Literal["learn", "sincos2d", "none"] = "none"
    """Absolute position embedding, beside the rotary one: learned, fixed 2-D sine-cosine, or none."""
    pos_grid: int | Pair | None = None
    """Patch grid of the learned positions, whatever img_size is; null is the grid of img_size."""
    pos_resize: Literal["bicubic", "bilinear", "cubic", "linear", "linear-corners"] = "bicubic"
    """Resizing of the positions to another grid: bicubic or bilinear with antialiasing (SigLIP 2's NaFlex is "bilinear"); the
    same without, "cubic" and "linear" (C-RADIO); and with the corners kept, "linear-corners" (C-RADIOv3-B and -H)."""
    pos_square: bool = False
    """Keep the aspect ratio of the positions: those of any image are the upper left part of a square's of its longer side."""
    norm: Literal["layer", "rms"] = "layer"
    """Every norm: LayerNorm, or RMSNorm (Zhang & Sennrich 2019)."""
    norm_position: Literal["pre", "post", "res-post"] = "pre"
    """Norms of a block: before its branches, after the sums (Vaswani et al. 2017), or at the end of its branches (EVA-02-E)."""
    layer_scale: Literal["both", "attention"] = "both"
    """Branches with LayerScale."""
    qkv: Literal["fused", "split"] = "fused"
    """Query, key and value from one projection, or from one each."""
    key_bias: bool = False
    """Bias of the keys, if qkv_bias is true: DINOv3 and EVA-02 have biases of queries and values only."""
    proj_bias: bool = True
    """Bias of the projection after attention."""
    mlp_bias: bool = True
    """Biases of the MLP."""
    kv_heads: int | None = None
    """Key and value heads of grouped-query attention (Ainslie et al. 2023), which needs qkv "split"; None is num_heads."""
    full_attention_blocks: int = 0
    """First and last blocks, that many each, with num_heads key and value heads."""
    qk_norm_width: Literal["head", "all"] = "head"
    """Norm of queries and keys, if qk_norm is true: over each head, or over all of them (InternViT)."""
    scale_attn_inner: bool = False
    """Norm of the heads' output, before its projection (EVA-02's CLIP models)."""
    gate: Literal["packed", "split"] = "packed"
    """Gate and value of mlp "swiglu" from one projection, or from one each."""
    scale_mlp: bool = False
    """Norm of the MLP's hidden layer (EVA-02 from base size); with mlp "swiglu" it needs gate "split"."""
    embed_norm: bool = False
    """Norm of the patch tokens, before positions are added (AIMv2)."""
    pool_heads: int | None = None
    """Heads of attention pooling; None is num_heads."""
    pool_mlp_ratio: float | None = None
    """Hidden width of attention pooling's MLP over embed_dim; None is mlp_ratio."""
    pool_block: bool = True
    """Query projection, norm and MLP in attention pooling (SigLIP, PE); false: the learned query itself, no MLP (AIMv2)."""
    block: Literal["serial", "parallel", "pair"] = "serial"
    """Attention, then MLP; both side by side from one norm and projection (ViT-22B: Dehghani et al. 2023); or two attentions
    side by side, then two MLPs (Touvron et al. 2022)."""
    attention: Literal["softmax", "differential"] = "softmax"
    """Attention of each head: one map, or the difference of two (Ye et al. 2025)."""
    relative_bias: Literal["none", "block", "shared"] = "none"
    """Relative position bias, an MLP of the log-spaced offset (Liu et al. 2022): each block's own, or one for all."""
    relative_hidden: int = 128
    """Hidden width of that MLP."""
    rope: Literal["none", "grid", "centred", "mixed", "alternating", "video"] = "centred"
    """Rotary positions (Su et al. 2021). "grid": rows and columns, counted (EVA-02, PE, RoPE-ViT axial); "centred": from -1 to
    1 over the image (DINOv3); "mixed": directions learned for each head (RoPE-ViT mixed: Heo et al. 2024); "alternating":
    counted, with rows at the even frequencies and columns at the odd ones (Pixtral); "video": counted, a third of the channels
    each for time, which is 0 in an image, rows and columns (V-JEPA 2: Assran et al. 2025)."""
    rope_layout: Literal["interleaved", "half"] = "half"
    """Channels that are turned together: neighbours (x₀, x₁), or half a head apart (x₀, x_d/2)."""
    rope_axes: Literal["yx", "xy"] = "yx"
    """Axis of the first half of the frequencies."""
    rope_temperature: float = 100.0
    """Ratio of the largest period to the smallest."""
    rope_offset: float = 0.0
    """Number of the first row and column, with "grid"."""
    rope_ref_grid: int | Pair | None = None
    """Patch grid that rows and columns are scaled to, with "grid": positions of any image are spread over this one's; null
    counts them as they are."""
    rope_class: bool = False
    """Learned angles for the class token, which is not turned otherwise (MLCD)."""
    rope_shift: float | None = None
    """Training: shift of the coordinates, uniform in ± this, along each axis."""
    rope_jitter: float | None = None
    """Training: factor of the coordinates, log-uniform from 1 / this to this, along each axis."""
    rope_rescale: float | None = None
    """Training: factor of the coordinates, log-uniform from 1 / this to this; DINOv3 was trained with 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rope != "none" and self.head_width % 4:
            raise ValueError(f"a head of {self.head_width} channels can't be turned along two axes; use a multiple of 4")
        if self.rope in ("mixed", "video") and self.rope_layout == "half":
            raise ValueError(f'rope "{self.rope}" has rope_layout "interleaved"; set it')
        if self.rope == "video" and self.rope_axes == "xy":
            raise ValueError('rope "video" has rope_axes "yx"; set it')
        if self.rope == "video" and self.head_width < 6:
            raise ValueError(f'rope "video" turns a head of 6 channels or more, not of {self.head_width}')
        if self.rope_ref_grid is not None and self.rope != "grid":
            raise ValueError(f'rope_ref_grid {self.rope_ref_grid} scales rope "grid", not "{self.rope}"; leave it out')
        if self.rope_class and (self.rope in ("none", "mixed", "video") or not self.class_token):
            raise ValueError(
                f'rope_class true needs a class token and rope "grid" or "centred", not "{self.rope}"; leave it out'
            )
        if self.pos_grid is not None and self.pos_embed != "learn":
            raise ValueError(f'pos_grid {self.pos_grid} needs pos_embed "learn", not "{self.pos_embed}"; leave it out')
        if self.pos_grid is not None and min(pair(self.pos_grid)) < 1:
            raise ValueError(f"pos_grid {self.pos_grid} must be at least 1 patch")
        if self.rope_temperature <= 0:
            raise ValueError(f"rope_temperature {self.rope_temperature} must be above 0")
        for name in ("rope_jitter", "rope_rescale"):
            if (getattr(self, name) or 1.0) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is a factor and must be at least 1")
        if self.kv_heads is not None and (self.qkv != "split" or self.kv_heads < 1 or self.num_heads % self.kv_heads):
            raise ValueError(f'kv_heads {self.kv_heads} must divide num_heads {self.num_heads}, and needs qkv "split"')
        if self.scale_mlp and self.mlp == "swiglu" and self.gate == "packed":
            raise ValueError('scale_mlp true with mlp "swiglu" needs gate "split"')
        if self.pool == "map" and self.embed_dim % (self.pool_heads or self.num_heads):
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of pool_heads {self.pool_heads}")
        check_block(self)
        if self.embed_norm and self.patch_norm:
            raise ValueError("embed_norm and patch_norm are both true; patch_norm has a norm of the patch tokens already")

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def score_width(self) -> int:
        """Channels of a query or key: those of a head, or half of them with differential attention."""
        return self.head_width // (2 if self.attention == "differential" else 1)

    @property
    def position_grid(self) -> Pair:
        """Patch grid of the learned positions."""
        if self.pos_grid is not None:
            return pair(self.pos_grid)
        (height, width), patch = pair(self.img_size), pair(self.patch_size)
        return height // patch[0], width // patch[1]

    @property
    def is_eva(self) -> bool:
        """True for a shape of timm's Eva, whose LayerScale is `gamma_1`; its VisionTransformer has `ls1.gamma`."""
        return self.rope != "none" or (self.qkv_bias and not self.key_bias)

    def kv_heads_of(self, block: int) -> int:
        """Return the number of key and value heads of a block."""
        full = min(block, self.depth - 1 - block) < self.full_attention_blocks
        return self.num_heads if self.kv_heads is None or full else self.kv_heads


_FUSED = {"qkv": "fused", "qk_norm_width": "head", "rope": "none", "relative_bias": "none"}
_BESIDE = {**_FUSED, "norm_position": "pre", "layer_scale": "both", "head_dim": None}
_ONLY: dict[str, dict[str, Any]] = {  # fields of which a block or an attention has one value
    "parallel": {**_BESIDE, "mlp": "gelu", "mlp_bias": True, "scale_mlp": False, "scale_attn_inner": False},
    "pair": {**_BESIDE, "mlp": "gelu", "attention": "softmax"},
    "differential": _FUSED,
}


def check_block(cfg: ModernConfig) -> None:
    """Raise ValueError for fields that the block or the attention of a config does not have."""
    for field, kind in (("block", cfg.block), ("attention", cfg.attention)):
        only = {**_ONLY[kind], **({"key_bias": True} if cfg.qkv_bias else {})} if kind in _ONLY else {}
        if wrong := [name for name in only if getattr(cfg, name) != only[name]]:
            has, value = json.dumps(getattr(cfg, wrong[0])), json.dumps(only[wrong[0]])
            raise ValueError(f'{wrong[0]} {has} does not go with {field} "{kind}"; use {value}')
    if cfg.attention == "differential" and cfg.head_width % 2:
        raise ValueError(f'attention "differential" halves a head of {cfg.head_width} channels; use an even number')


# --------------------------------------------------------------------------------------------------------------------
# Published models

_PREFIXES = ("naflexvit_", "dinov3_", "eva_", "eva02_", "pe_", "vit_pe_", "aimv2_", "rope_", "vjepa2_", "modern_")


def parse_modern_name(name: str) -> dict[str, Any] | None:
    """Return the ModernConfig fields that a name decides; None for another family's name.

    "dinov3_b16", timm's "vit_base_patch16_dinov3" and Meta's "dinov3_vitb16" are names, and so is any of them with an image
    size behind it: "eva02_base_patch14_448". Raises ValueError for a size that does not exist.
    """
    if name == MODERN_CUSTOM:
        return {}
    if name in MODERN_ROWS:
        return dict(MODERN_ROWS[name])
    stem, size = (sized[1], sized[2]) if (sized := re.fullmatch(r"(.+)_(\d+)", name)) else (name, "")
    if size and stem in MODERN_ROWS:
        return {**MODERN_ROWS[stem], "img_size": int(size)}
    if name.startswith(_PREFIXES):
        hint = nearest(stem, list(MODERN_ROWS)) or f"; names are {', '.join(list(MODERN_SIZES)[:3])} and the like"
        raise ValueError(f'model "{name}" is not a size of a modern ViT{hint}')
    return None


def modern_name(config: ModernConfig) -> str:
    """Return the name of a published shape at any image size; "modern_custom" for another."""
    return _names().get(_key(config), MODERN_CUSTOM)


def _key(config: ModernConfig) -> tuple[Any, ...]:
    """Return the fields that make the shape."""
    return tuple(value for name, value in vars(config).items() if name not in _TRAINED and not name.endswith("_rate"))


_TRAINED = ("img_size", "in_channels", "num_classes", "rope_shift", "rope_jitter", "rope_rescale")


@functools.cache
def _names() -> dict[tuple[Any, ...], str]:
    return {_key(ModernConfig(**row)): name for name, row in reversed(MODERN_ROWS.items())}


@dataclass(frozen=True, kw_only=True)
class ModernModelConfig(ModernConfig, ModelSection):
    """The `model` section of a modern Vision Transformer."""

    config_type = ModernConfig
    name: str = "dinov3_b16"
    """Size, such as "dinov3_b16", "eva02_s14", "pe_core_b16" or "aimv2_l14", or timm's name."""

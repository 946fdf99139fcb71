"""Shape of a modern Vision Transformer: rotary positions, gated MLPs, RMSNorm, post-norm; table of published models."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any, Literal

from vitrail.settings.model import ModelSection
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
    rope: Literal["none", "grid", "centred", "mixed", "alternating"] = "centred"
    """Rotary positions (Su et al. 2021). "grid": rows and columns, counted (EVA-02, PE, RoPE-ViT axial); "centred": from -1 to
    1 over the image (DINOv3); "mixed": directions learned for each head (RoPE-ViT mixed: Heo et al. 2024); "alternating":
    counted, with rows at the even frequencies and columns at the odd ones (Pixtral)."""
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
        if self.rope == "mixed" and self.rope_layout == "half":
            raise ValueError('rope "mixed" has rope_layout "interleaved"; set it')
        if self.rope_ref_grid is not None and self.rope != "grid":
            raise ValueError(f'rope_ref_grid {self.rope_ref_grid} scales rope "grid", not "{self.rope}"; leave it out')
        if self.rope_class and (self.rope in ("none", "mixed") or not self.class_token):
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
        if self.embed_norm and self.patch_norm:
            raise ValueError("embed_norm and patch_norm are both true; patch_norm has a norm of the patch tokens already")

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.embed_dim // self.num_heads

    def kv_heads_of(self, block: int) -> int:
        """Return the number of key and value heads of a block."""
        full = min(block, self.depth - 1 - block) < self.full_attention_blocks
        return self.num_heads if self.kv_heads is None or full else self.kv_heads


# --------------------------------------------------------------------------------------------------------------------
# Published models

_Row = dict[str, Any]


def _shape(embed_dim: int, depth: int, num_heads: int, *parts: _Row, **fields: Any) -> _Row:
    """Return a row: width, depth and heads, with the fields of the parts; the later wins."""
    merged: _Row = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    for part in (*parts, fields):
        merged |= part
    return merged


_SPLIT_SWIGLU: _Row = {"mlp": "swiglu", "gate": "split"}
_COUNTED: _Row = {"rope": "grid", "rope_layout": "interleaved", "rope_temperature": 1e4}
_MEAN: _Row = {"pool": "avg", "fc_norm": True}
_PLAIN: _Row = {"norm_eps": 1e-6, "init_values": None, "reg_tokens": 0}
_LEARNED: _Row = {**_PLAIN, "pos_embed": "learn"}
_EVA: _Row = {**_LEARNED, **_MEAN, "rope": "none", "patch_size": 14}
_EVA02: _Row = {**_EVA, **_COUNTED, "rope_ref_grid": 16, "mlp": "swiglu", "mlp_ratio": 8 / 3}
_EVA02_LARGE: _Row = {**_EVA02, **_SPLIT_SWIGLU, "scale_mlp": True, "qkv": "split"}
_EVA02_CLIP: _Row = {**_EVA02_LARGE, "scale_attn_inner": True, "pool": "cls", "fc_norm": False}
_L_RATIO: _Row = {"mlp_ratio": 2730 / 1024}
_SBB: _Row = {**_PLAIN, **_COUNTED, **_MEAN, "rope_ref_grid": 16, "init_values": 1e-5, "class_token": False, "img_size": 256}
_PE: _Row = {**_LEARNED, **_COUNTED, "norm_eps": 1e-5, "key_bias": True, "pre_norm": True, "rope_axes": "xy"}
_PE_CORE: _Row = {**_PE, "rope_offset": 1.0, "pool": "map", "pool_include_prefix": True, "pool_heads": 8}
_PE_DENSE: _Row = {**_PE, "rope_offset": 1.0, "rope_ref_grid": 32, "pool": "avg", "final_norm": False}
_PE_G: _Row = {"patch_size": 14, "mlp_ratio": 8960 / 1536, "class_token": False, "rope_offset": 0.0, "rope_ref_grid": 32}
_PE_G |= {"img_size": 448}
_NAFLEX: _Row = {**_LEARNED, "key_bias": True, "rope": "none", "class_token": False, "pos_grid": 16, "img_size": 384}
_NAFLEX_GAP: _Row = {**_NAFLEX, **_MEAN, "init_values": 1e-5, "reg_tokens": 4}
_NAFLEX_MAP: _Row = {**_NAFLEX, "init_values": 1e-5, "reg_tokens": 1, "pool": "map"}
_NAFLEX_SIGLIP: _Row = {**_NAFLEX, "pool": "map", "mlp": "gelu_tanh", "pos_resize": "bilinear"}
_SO150M2: _Row = {"mlp_ratio": 34 / 13, "qkv_bias": False, "reg_tokens": 1}
_RADIO: _Row = {**_NAFLEX, "class_token": True, "no_embed_class": True, "final_norm": False, "pos_grid": 128}
_RADIO |= {"pos_resize": "linear", "pos_square": True, "reg_tokens": 7, "img_size": 512}
_CORNERS: _Row = {"pos_resize": "linear-corners"}
_ROPE: _Row = {**_PLAIN, **_COUNTED, "rope_axes": "xy", "rope_temperature": 100.0, "init_values": 1e-5, "key_bias": True}
_MIXED: _Row = {"rope": "mixed", "rope_temperature": 10.0}
_BESIDE: _Row = {"pos_embed": "learn", "no_embed_class": True}
_SAPIENS2: _Row = {"norm": "rms", "norm_eps": 1e-6, "qkv": "split", "key_bias": True, "qk_norm": True, "mlp": "swiglu"}
_SAPIENS2 |= {"reg_tokens": 8, "init_values": 1.0, "layer_scale": "attention", "full_attention_blocks": 8, "rope_rescale": 2.0}
_SAPIENS2 |= {"img_size": (1024, 768)}
_AIMV2: _Row = {**_LEARNED, **_SPLIT_SWIGLU, "norm": "rms", "norm_eps": 1e-5, "rope": "none", "embed_norm": True}
_AIMV2 |= {"patch_size": 14, "class_token": False, "pool": "avg"}
_AIMV2 |= {"qkv_bias": False, "proj_bias": False, "mlp_bias": False}

MODERN_SIZES: dict[str, _Row] = {  #                                            parameters at 1000 classes
    "dinov3_s16": _shape(384, 12, 6),  #                                            21_986_152
    "dinov3_splus16": _shape(384, 12, 6, _SPLIT_SWIGLU),
    "dinov3_b16": _shape(768, 12, 12),
    "dinov3_l16": _shape(1024, 24, 16),
    "dinov3_hplus16": _shape(1280, 32, 20, _SPLIT_SWIGLU),
    "dinov3_7b16": _shape(4096, 40, 32, _SPLIT_SWIGLU, mlp_ratio=2.0, qkv_bias=False),
    "eva_g14": _shape(1408, 40, 16, _EVA, mlp_ratio=6144 / 1408),
    "eva_g14_clip": _shape(1408, 40, 16, _EVA, mlp_ratio=6144 / 1408, pool="cls", fc_norm=False),
    "eva02_t14": _shape(192, 12, 3, _EVA02),
    "eva02_s14": _shape(384, 12, 6, _EVA02),
    "eva02_b14": _shape(768, 12, 12, _EVA02_LARGE),
    "eva02_l14": _shape(1024, 24, 16, _EVA02_LARGE, _L_RATIO),
    "eva02_b16_clip": _shape(768, 12, 12, _EVA02_CLIP, patch_size=16),
    "eva02_l14_clip": _shape(1024, 24, 16, _EVA02_CLIP, _L_RATIO),
    "eva02_e14_clip": _shape(1792, 64, 16, _EVA, mlp_ratio=15360 / 1792, norm_position="res-post", pool="cls", fc_norm=False),
    "pe_core_t16": _shape(192, 12, 3, _PE_CORE, img_size=384, rope_ref_grid=24),
    "pe_core_s16": _shape(384, 12, 6, _PE_CORE, img_size=384, rope_ref_grid=24),
    "pe_core_b16": _shape(768, 12, 12, _PE_CORE, rope_ref_grid=14),
    "pe_core_l14": _shape(1024, 24, 16, _PE_CORE, img_size=336, patch_size=14, rope_ref_grid=24),
    "pe_core_g14": _shape(1536, 50, 16, _PE_CORE, _PE_G, pool_mlp_ratio=4.0),
    "pe_lang_l14": _shape(1024, 23, 16, _PE_DENSE, img_size=448, patch_size=14, init_values=0.1),
    "pe_lang_g14": _shape(1536, 47, 16, _PE_DENSE, _PE_G, init_values=0.1),
    "pe_spatial_t16": _shape(192, 12, 3, _PE_DENSE, img_size=512),
    "pe_spatial_s16": _shape(384, 12, 6, _PE_DENSE, img_size=512),
    "pe_spatial_b16": _shape(768, 12, 12, _PE_DENSE, img_size=512),
    "pe_spatial_l14": _shape(1024, 24, 16, _PE_DENSE, img_size=448, patch_size=14),
    "pe_spatial_g14": _shape(1536, 50, 16, _PE_DENSE, _PE_G, init_values=0.1),
    "aimv2_l14": _shape(1024, 24, 8, _AIMV2, mlp_ratio=2.75),
    "aimv2_h14": _shape(1536, 24, 12, _AIMV2, mlp_ratio=2.6667),
    "aimv2_1b14": _shape(2048, 24, 16, _AIMV2, mlp_ratio=2.75),
    "aimv2_3b14": _shape(3072, 24, 24, _AIMV2, mlp_ratio=2.6667),
    "rope_s16": _shape(384, 12, 6, _ROPE),
    "rope_b16": _shape(768, 12, 12, _ROPE),
    "rope_l16": _shape(1024, 24, 16, _ROPE),
}
"""Our names."""

_NO_BIAS: _Row = {"qkv_bias": False}
_TIMM: dict[str, _Row] = {
    "vit_tiny_patch16_dinov3_qkvb": _shape(192, 12, 3, pool="avg"),
    "vit_small_patch16_dinov3": MODERN_SIZES["dinov3_s16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_small_plus_patch16_dinov3": MODERN_SIZES["dinov3_splus16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_base_patch16_dinov3": MODERN_SIZES["dinov3_b16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_large_patch16_dinov3": MODERN_SIZES["dinov3_l16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_huge_plus_patch16_dinov3": MODERN_SIZES["dinov3_hplus16"] | {"pool": "avg"} | _NO_BIAS,
    "vit_small_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_s16"] | {"pool": "avg"},
    "vit_small_plus_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_splus16"] | {"pool": "avg"},
    "vit_base_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_b16"] | {"pool": "avg"},
    "vit_large_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_l16"] | {"pool": "avg"},
    "vit_huge_plus_patch16_dinov3_qkvb": MODERN_SIZES["dinov3_hplus16"] | {"pool": "avg"},
    "vit_7b_patch16_dinov3": MODERN_SIZES["dinov3_7b16"] | {"pool": "avg"},
    "vit_small_patch16_lingbot": MODERN_SIZES["dinov3_s16"],
    "vit_base_patch16_lingbot": MODERN_SIZES["dinov3_b16"],
    "vit_large_patch16_lingbot": MODERN_SIZES["dinov3_l16"],
    "vit_giant_patch16_lingbot": _shape(1536, 40, 24, _SPLIT_SWIGLU, _NO_BIAS, mlp_ratio=8 / 3),
    "eva_giant_patch14": MODERN_SIZES["eva_g14"],
    "eva_giant_patch14_clip": MODERN_SIZES["eva_g14_clip"],
    "eva02_tiny_patch14": MODERN_SIZES["eva02_t14"],
    "eva02_small_patch14": MODERN_SIZES["eva02_s14"],
    "eva02_base_patch14": MODERN_SIZES["eva02_b14"],
    "eva02_large_patch14": MODERN_SIZES["eva02_l14"],
    "eva02_base_patch16_clip": MODERN_SIZES["eva02_b16_clip"],
    "eva02_large_patch14_clip": MODERN_SIZES["eva02_l14_clip"],
    "eva02_enormous_patch14_clip": MODERN_SIZES["eva02_e14_clip"],
    "vit_medium_patch16_rope_reg1_gap": _shape(512, 12, 8, _SBB, reg_tokens=1),
    "vit_mediumd_patch16_rope_reg1_gap": _shape(512, 20, 8, _SBB, _NO_BIAS, reg_tokens=1),
    "vit_betwixt_patch16_rope_reg4_gap": _shape(640, 12, 10, _SBB, reg_tokens=4),
    "vit_base_patch16_rope_reg1_gap": _shape(768, 12, 12, _SBB, reg_tokens=1),
    "vit_pe_core_tiny_patch16": MODERN_SIZES["pe_core_t16"],
    "vit_pe_core_small_patch16": MODERN_SIZES["pe_core_s16"],
    "vit_pe_core_base_patch16": MODERN_SIZES["pe_core_b16"],
    "vit_pe_core_large_patch14": MODERN_SIZES["pe_core_l14"],
    "vit_pe_core_gigantic_patch14": MODERN_SIZES["pe_core_g14"],
    "vit_pe_lang_large_patch14": MODERN_SIZES["pe_lang_l14"],
    "vit_pe_lang_gigantic_patch14": MODERN_SIZES["pe_lang_g14"],
    "vit_pe_spatial_tiny_patch16": MODERN_SIZES["pe_spatial_t16"],
    "vit_pe_spatial_small_patch16": MODERN_SIZES["pe_spatial_s16"],
    "vit_pe_spatial_base_patch16": MODERN_SIZES["pe_spatial_b16"],
    "vit_pe_spatial_large_patch14": MODERN_SIZES["pe_spatial_l14"],
    "vit_pe_spatial_gigantic_patch14": MODERN_SIZES["pe_spatial_g14"],
    "vit_base_patch16_sapiens2": _shape(768, 12, 12, _SAPIENS2, kv_heads=6),
    "vit_large_patch16_sapiens2": _shape(1024, 24, 16, _SAPIENS2, kv_heads=8),
    "vit_huge_patch16_sapiens2": _shape(1280, 32, 16, _SAPIENS2, kv_heads=8),
    "vit_giant_patch16_sapiens2": _shape(1536, 40, 24, _SAPIENS2, kv_heads=12),
    "vit_5b_patch16_sapiens2": _shape(2432, 56, 32, _SAPIENS2, kv_heads=16),
    "naflexvit_base_patch16_gap": _shape(768, 12, 12, _NAFLEX_GAP),
    "naflexvit_base_patch16_par_gap": _shape(768, 12, 12, _NAFLEX_GAP, pos_square=True),
    "naflexvit_base_patch16_parfac_gap": _shape(768, 12, 12, _NAFLEX_GAP, pos_square=True, pos_resize="linear"),
    "naflexvit_base_patch16_map": _shape(768, 12, 12, _NAFLEX_MAP),
    "naflexvit_so150m2_patch16_reg1_gap": _shape(832, 21, 13, _NAFLEX_GAP, _SO150M2),
    "naflexvit_so150m2_patch16_reg1_map": _shape(832, 21, 13, _NAFLEX_MAP, _SO150M2),
    "naflexvit_base_patch16_siglip": _shape(768, 12, 12, _NAFLEX_SIGLIP),
    "naflexvit_so400m_patch16_siglip": _shape(1152, 27, 16, _NAFLEX_SIGLIP, mlp_ratio=3.7362),
    "naflexvit_base_patch16_radio_v3": _shape(768, 12, 12, _RADIO, _CORNERS, init_values=1e-5),
    "naflexvit_large_patch16_radio_v3": _shape(1024, 24, 16, _RADIO, init_values=1e-5),
    "naflexvit_huge_patch16_radio_v3": _shape(1280, 32, 16, _RADIO, _CORNERS),
    "naflexvit_giant_patch16_radio_v3": _shape(1536, 40, 24, _RADIO),
    "naflexvit_so400m_patch16_radio_v4": _shape(1152, 27, 16, _RADIO, mlp_ratio=4304 / 1152, reg_tokens=9),
    "naflexvit_huge_patch16_radio_v4": _shape(1280, 32, 16, _RADIO, reg_tokens=9),
    "aimv2_large_patch14": MODERN_SIZES["aimv2_l14"],
    "aimv2_huge_patch14": MODERN_SIZES["aimv2_h14"],
    "aimv2_1b_patch14": MODERN_SIZES["aimv2_1b14"],
    "aimv2_3b_patch14": MODERN_SIZES["aimv2_3b14"],
}
for _size in ("small", "base", "large"):
    _axial = MODERN_SIZES[f"rope_{_size[0]}16"]
    _TIMM[f"vit_{_size}_patch16_rope"] = _axial
    _TIMM[f"vit_{_size}_patch16_rope_mixed"] = _axial | _MIXED
    _TIMM[f"vit_{_size}_patch16_rope_ape"] = _axial | _BESIDE
    _TIMM[f"vit_{_size}_patch16_rope_mixed_ape"] = _axial | _MIXED | _BESIDE
_HUB = {"s16": "s16", "s16plus": "splus16", "b16": "b16", "l16": "l16", "h16plus": "hplus16", "7b16": "7b16"}
_ROWS: dict[str, _Row] = {
    **MODERN_SIZES,
    **_TIMM,
    **{f"dinov3_vit{m}": MODERN_SIZES[f"dinov3_{ours}"] for m, ours in _HUB.items()},
}
_PREFIXES = ("naflexvit_", "dinov3_", "eva_", "eva02_", "pe_", "vit_pe_", "aimv2_", "rope_", "modern_")


def parse_modern_name(name: str) -> dict[str, Any] | None:
    """Return the ModernConfig fields that a name decides; None for another family's name.

    "dinov3_b16", timm's "vit_base_patch16_dinov3" and Meta's "dinov3_vitb16" are names, and so is any of them with an image
    size behind it: "eva02_base_patch14_448". Raises ValueError for a size that does not exist.
    """
    if name == MODERN_CUSTOM:
        return {}
    if name in _ROWS:
        return dict(_ROWS[name])
    stem, size = (sized[1], sized[2]) if (sized := re.fullmatch(r"(.+)_(\d+)", name)) else (name, "")
    if size and stem in _ROWS:
        return {**_ROWS[stem], "img_size": int(size)}
    if name.startswith(_PREFIXES):
        hint = nearest(stem, list(_ROWS)) or f"; names are {', '.join(list(MODERN_SIZES)[:3])} and the like"
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
    return {_key(ModernConfig(**row)): name for name, row in reversed(_ROWS.items())}


@dataclass(frozen=True, kw_only=True)
class ModernModelConfig(ModernConfig, ModelSection):
    """The `model` section of a modern Vision Transformer."""

    config_type = ModernConfig
    name: str = "dinov3_b16"
    """Size, such as "dinov3_b16", "eva02_s14", "pe_core_b16" or "aimv2_l14", or timm's name."""

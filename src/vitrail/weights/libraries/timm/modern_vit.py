"""Modern ViTs in timm's VisionTransformer, with its other blocks, and in its VisionTransformerRelPos: arguments to write."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from vitrail.settings.modern import ModernConfig
from vitrail.weights.names import Form
from vitrail.weights.targets import Inexpressible, literal, mlp_ratio, same_names

_FIXED: dict[str, tuple[Any, ...]] = {  # fields of which both classes have these values only
    "mlp": ("gelu",),
    "qkv": ("fused",),
    "qk_norm_width": ("head",),
    "norm_position": ("pre", "res-post"),
    "layer_scale": ("both",),
    "embed_norm": (False,),
    "head": ("linear",),
    "stem": ("patch",),
    "dist_token": (False,),
    "patch_norm": (False,),
    "head_dim": (None,),
    "rope": ("none",),
    "pool_mlp_ratio": (None,),
    "pos_grid": (None,),
    "pos_resize": ("bicubic",),
    "pos_square": (False,),
}
_RELPOS: dict[str, tuple[Any, ...]] = {
    "norm": ("layer",),
    "norm_eps": (1e-6,),
    "pool": ("cls", "avg"),
    "pos_embed": ("none",),
    "reg_tokens": (0,),
    "pre_norm": (False,),
    "final_norm": (True,),
    "scale_mlp": (False,),
    "scale_attn_inner": (False,),
    "proj_bias": (True,),
    "mlp_bias": (True,),
    "pool_include_prefix": (False,),
    "attention": ("softmax",),
}
_VIT: dict[str, tuple[Any, ...]] = {"pool": ("cls", "avg", "map"), "pool_block": (True,), "pos_embed": ("learn", "none")}
_BY_BLOCK = {  # architectures by what JSON can't hold: the block, and the norm with its epsilon
    ("parallel", "softmax", "pre", "rms", 1e-6): "vit_base_patch16_xp_224",
    ("parallel", "softmax", "pre", "layer", 1e-6): "vit_pwee_patch16_reg1_gap_256",
    ("parallel", "differential", "pre", "layer", 1e-6): "vit_dpwee_patch16_reg1_gap_256",
    ("pair", "softmax", "pre", "layer", 1e-6): "vit_small_patch16_18x2_224",
    ("serial", "differential", "pre", "layer", 1e-6): "vit_dwee_patch16_reg1_gap_256",
    ("serial", "softmax", "pre", "layer", 1e-6): "vit_base_patch16_224",
    ("serial", "softmax", "pre", "layer", 1e-5): "beit3_base_patch16_224",
    ("serial", "softmax", "pre", "rms", 1e-6): "test_vit4",
    ("serial", "softmax", "res-post", "layer", 1e-6): "vit_base_patch16_rpn_224",
}


def vit_architecture(cfg: ModernConfig) -> str:
    """Return an architecture of timm with the block and norms of a config. Raises Inexpressible for what both classes lack."""
    relative = cfg.relative_bias != "none"
    name = "VisionTransformerRelPos" if relative else "VisionTransformer"
    for field, values in {**_FIXED, **(_RELPOS if relative else _VIT)}.items():
        if getattr(cfg, field) not in values:
            only = " or ".join(map(literal, values))
            raise Inexpressible(f"timm's {name} has no {field} {literal(getattr(cfg, field))}, only {only}")
    key = (cfg.block, cfg.attention, cfg.norm_position, cfg.norm, cfg.norm_eps)
    lacks = {
        "norm_position res-post with LayerScale": cfg.norm_position == "res-post" and cfg.init_values is not None,
        "proj_bias other than mlp_bias": cfg.proj_bias != cfg.mlp_bias,
        "reg_tokens without positions beside a class token with one": cfg.pos_embed == "learn"
        and cfg.reg_tokens
        and cfg.class_token
        and not cfg.no_embed_class,
        "pool_heads other than num_heads": cfg.pool_heads not in (None, cfg.num_heads),
        f'{cfg.norm} norm of norm_eps {cfg.norm_eps:g} with block "{cfg.block}", attention "{cfg.attention}" and norms '
        f'"{cfg.norm_position}"': not relative and key not in _BY_BLOCK,
    }
    if lacking := next((what for what, has in lacks.items() if has), None):
        raise Inexpressible(f"timm's {name} has no {lacking}")
    if relative:
        return "vit_relpos_base_patch16_224" if cfg.norm_position == "pre" else "vit_relpos_base_patch16_rpn_224"
    return _BY_BLOCK[key]


def vit_args(cfg: ModernConfig) -> dict[str, Any]:
    """Return the arguments of the class that `vit_architecture` names."""
    args: dict[str, Any] = {
        "in_chans": cfg.in_channels,
        **same_names(cfg, "img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias", "qk_norm", "init_values"),
        **same_names(cfg, "class_token", "fc_norm"),
        "mlp_ratio": mlp_ratio(round(cfg.embed_dim * cfg.mlp_ratio), cfg.embed_dim),
        "global_pool": "token" if cfg.pool == "cls" else cfg.pool,
    }
    if cfg.relative_bias != "none":
        return {**args, "shared_rel_pos": cfg.relative_bias == "shared", "rel_pos_dim": cfg.relative_hidden}
    return {
        **args,
        **same_names(cfg, "proj_bias", "pre_norm", "final_norm", "reg_tokens", "pos_embed", "pool_include_prefix"),
        "no_embed_class": cfg.no_embed_class or (not cfg.class_token and cfg.reg_tokens > 0),
        "scale_attn_norm": cfg.scale_attn_inner,
        "scale_mlp_norm": cfg.scale_mlp,
        "dynamic_img_size": True,
    }


# --------------------------------------------------------------------------------------------------------------------
# Registers with positions


def register_names(name: str) -> tuple[str, ...]:
    """Return timm's names where registers have rows in the position embedding, and there is no class token."""
    return {"reg_token": ("reg_token", "pos_embed"), "pos_embed": ("pos_embed", "reg_token")}.get(name, (name,))


def register_form(name: str) -> Form | None:
    """Move the registers' positions to the registers: the sum is the same."""
    if name not in ("reg_token", "pos_embed"):
        return None

    def read(parts: list[Tensor]) -> Tensor:
        registers, positions = parts if name == "reg_token" else parts[::-1]
        count = registers.shape[1] if math.isqrt(positions.shape[1]) ** 2 != positions.shape[1] else 0  # rows of registers
        if name == "pos_embed":
            return positions[:, count:]
        return registers + positions[:, :count] if count else registers

    return Form(read, lambda x, cfg: [x])

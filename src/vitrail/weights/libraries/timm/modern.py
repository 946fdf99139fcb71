"""Modern ViTs of timm: its Eva, whose names ours are, and AIMv2 in its VisionTransformer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vitrail.models.modern import ModernViT
from vitrail.settings import Preprocessing, ViTConfig, pair
from vitrail.settings.modern import ModernConfig, parse_modern_name
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.libraries.timm.modern_vit import register_form, register_names, vit_architecture, vit_args
from vitrail.weights.libraries.timm.naflex import is_naflex, naflex_config, naflex_state
from vitrail.weights.library import Config, Export, FamilyLayout, from_list
from vitrail.weights.targets import Inexpressible, State, literal, mlp_ratio, preprocessing_of, same_names

ROPES = {"cat": "grid", "dinov3": "centred", "mixed": "mixed"}
POOLS = {"token": "cls", "avg": "avg", "map": "map"}
_ARGUMENTS: dict[str, tuple[str, Mapping[Any, Any] | None]] = {  # of timm's Eva: our field, and its words
    "num_heads": ("num_heads", None),
    "img_size": ("img_size", None),
    "norm_eps": ("norm_eps", None),
    "global_pool": ("pool", POOLS),
    "rope_type": ("rope", ROPES),
    "rope_rotate_half": ("rope_layout", {True: "half", False: "interleaved"}),
    "rope_grid_indexing": ("rope_axes", {"ij": "yx", "xy": "xy"}),
    "rope_temperature": ("rope_temperature", None),
    "rope_grid_offset": ("rope_offset", None),
    "ref_feat_shape": ("rope_ref_grid", None),
    "attn_pool_num_heads": ("pool_heads", None),
    "use_post_norm": ("norm_position", {True: "res-post", False: "pre"}),
}


# --------------------------------------------------------------------------------------------------------------------
# Reading


def is_modern(config: Config, overrides: Mapping[str, Any]) -> bool:
    """Return whether tensors of a plain ViT's names are a modern one's: an architecture, or an answer of the caller says so."""
    name = str(config.get("architecture") or "")
    answered = overrides.get("rope") is not None or overrides.get("norm_position") not in (None, "pre")
    return answered or (not name.startswith("eva_giant") and _row(name) is not None)


def config_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig that architecture, model_args and pretrained_cfg state."""
    row = _row(str(config.get("architecture") or ""))
    if row is None:
        return {}
    args, size = dict(config.get("model_args") or {}), (config.get("pretrained_cfg") or {}).get("input_size")
    left = ("img_size", *(() if "pos_grid" in row else ("pos_grid", "pos_resize", "pos_square")))  # the grid is img_size's
    fields = {name: value for name, value in vars(ModernConfig(**row)).items() if name not in left}
    if size:
        fields["img_size"] = tuple(size[1:])
    for argument, (field, words) in _ARGUMENTS.items():
        value = from_list(args.get(argument, config.get(argument)))
        if value is None and not (argument in args and field in ("rope_ref_grid", "pool_heads")):
            continue
        if words is not None and value not in words:
            raise ValueError(f"timm's {argument} {literal(value)} is none of {', '.join(map(str, words))}; open it with timm")
        fields[field] = value if words is None else words[value]
    if args.get("use_rot_pos_emb") is False:
        fields["rope"] = "none"
    prefix = args.get("pool_include_prefix", fields["pool"] == "map" and fields["rope"] != "none")
    return {**fields, "pool_include_prefix": prefix}


def _row(architecture: str) -> dict[str, Any] | None:
    """Return the fields of a published architecture; None for another."""
    try:
        return parse_modern_name(architecture)
    except ValueError:
        return None


_PROJ = "patch_embed.proj.weight"
_NEVER = r"relative_position|rel_pos|storage_tokens|\.ls1\.gamma"
_EVA = r"relative_position|rel_pos|storage_tokens|rope|\.gamma_1|q_bias|fc1_g|q_proj"
_QKV = "blocks.0.attn.qkv.weight"


def vit_fields(config: Config, **implied: Any) -> dict[str, Any]:
    """Return `config_fields` of an architecture without rotary positions, which its tensors' names tell."""
    return {"rope": "none", **implied, **config_fields(config)}


_QKV = "blocks.0.attn.qkv.weight"
_VIT = functools.partial(FamilyLayout, ModernConfig, "timm", ignored=r"mask_token$")
_VIT_LAYOUTS = (  # timm's VisionTransformer with other blocks, and VisionTransformerRelPos
    *(
        _VIT((_PROJ, shown), lacks=r"relative_position", fields=vit_fields)
        for shown in (
            "blocks.0.in_proj.weight",
            "blocks.0.attns.0.attn.qkv.weight",
            "blocks.0.attn.lambda_q1",
            "blocks.0.attn.rel_pos.mlp.fc1.weight",
            "shared_rel_pos.mlp.fc1.weight",
        )
    ),
    _VIT(
        (_PROJ, _QKV, "blocks.0.attn.norm.weight", "blocks.0.mlp.norm.weight"),
        lacks=_EVA,
        fields=functools.partial(vit_fields, norm_eps=1e-5),  # BEiT-3's
    ),
    _VIT(
        (_PROJ, _QKV, "blocks.0.ls1.gamma", "reg_token"),
        names=register_names,
        form=register_form,
        lacks=_EVA + r"|norm1\.bias|cls_token",
        fields=vit_fields,
    ),
    _VIT((_PROJ, _QKV, "blocks.0.ls1.gamma"), lacks=_EVA + r"|norm1\.bias", fields=vit_fields),
)
MODERN_LAYOUTS = (
    *(
        FamilyLayout(ModernConfig, "timm", (_PROJ, shown), ignored=r"mask_token$", lacks=_NEVER, fields=config_fields)
        for shown in ("rope.freqs", "blocks.0.attn.q_proj.weight", "blocks.0.mlp.fc1_g.weight")
    ),
    FamilyLayout(
        ModernConfig,
        "timm",
        (_PROJ, "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight"),  # a plain ViT's names too
        ignored=r"mask_token$",
        lacks=_NEVER,
        fields=config_fields,
        claims=is_modern,
    ),
    *_VIT_LAYOUTS,
)

# --------------------------------------------------------------------------------------------------------------------
# Writing

_FIXED: dict[str, tuple[Any, ...]] = {  # fields of which timm's Eva has these values only
    "mlp": ("gelu", "swiglu"),
    "mlp_bias": (True,),
    "proj_bias": (True,),
    "norm_position": ("pre", "res-post"),
    "embed_norm": (False,),
    "qk_norm_width": ("head",),
    "pool": ("cls", "avg", "map"),
    "pool_block": (True,),
    "pos_embed": ("learn", "none"),
    "pos_grid": (None,),
    "pos_resize": ("bicubic",),
    "pos_square": (False,),
    "rope_class": (False,),
    "head": ("linear",),
    "stem": ("patch",),
    "dist_token": (False,),
    "patch_norm": (False,),
    "head_dim": (None,),
    "rope": ("none", "grid", "centred", "mixed"),
    "block": ("serial",),
    "attention": ("softmax",),
    "relative_bias": ("none",),
}
_BY_NORM = {  # architectures by the norm, which is no argument that JSON can hold
    ("layer", 1e-6): "eva02_tiny_patch14_224",
    ("layer", 1e-5): "vit_small_patch16_dinov3",
    ("rms", 1e-6): "vit_base_patch16_sapiens2",
}


def modern_config(cfg: ModernConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens a modern ViT. Raises Inexpressible for what its class lacks."""
    if is_naflex(cfg):
        return naflex_config(cfg, images, licence)
    if _is_aimv2(cfg):
        architecture, args = "aimv2_large_patch14_224", _aimv2_args(cfg)
    elif cfg.is_eva:
        architecture, args = _architecture(cfg), eva_args(cfg)
    else:
        architecture, args = vit_architecture(cfg), vit_args(cfg)
    return {
        "architecture": architecture,
        "model_args": args,
        "pretrained_cfg": pretrained_cfg(cfg, images, licence, fixed_input_size=True, **first_conv(cfg), classifier="head"),
    }


def _is_aimv2(cfg: ModernConfig) -> bool:
    shape = ("img_size", "patch_size", "in_channels", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
    like = ModernConfig(
        **(parse_modern_name("aimv2_l14") or {})
        | same_names(cfg, *shape)
        | {name: value for name, value in vars(cfg).items() if name.endswith("_rate") or name == "qkv_bias"}
    )
    return like == cfg


def _architecture(cfg: ModernConfig) -> str:
    for name, values in _FIXED.items():
        if getattr(cfg, name) not in values:
            only = " or ".join(map(literal, values))
            raise Inexpressible(f"timm's Eva has no {name} {literal(getattr(cfg, name))}, only {only}")
    if (cfg.norm, cfg.norm_eps) not in _BY_NORM:
        raise Inexpressible(f"timm's Eva has no {cfg.norm} norm with norm_eps {cfg.norm_eps:g}")
    post, prefix, learned = cfg.norm_position == "res-post", cfg.class_token or cfg.reg_tokens, cfg.pos_embed != "none"
    extras = cfg.init_values is not None or cfg.qk_norm or cfg.kv_heads
    lacks = {
        "reg_tokens without positions beside those of patches": cfg.reg_tokens and learned and not cfg.no_embed_class,
        "pool_include_prefix false with attention pooling": cfg.pool == "map" and not cfg.pool_include_prefix and prefix,
        "pool_include_prefix true with pool avg": cfg.pool == "avg" and cfg.pool_include_prefix,
        "kv_heads with biases of queries and values only": cfg.kv_heads and cfg.qkv_bias and not cfg.key_bias,
        "norm_position res-post with LayerScale, qk_norm or kv_heads": post and extras,
        "norm_position res-post with gate split and scale_mlp false": post and cfg.gate == "split" and not cfg.scale_mlp,
    }
    if lacking := next((what for what, has in lacks.items() if has), None):
        raise Inexpressible(f"timm's Eva has no {lacking}")
    return _BY_NORM[cfg.norm, cfg.norm_eps]


def eva_args(cfg: ModernConfig) -> dict[str, Any]:
    """Return the arguments of timm's Eva."""
    args: dict[str, Any] = {
        "in_chans": cfg.in_channels,
        **same_names(cfg, "img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias", "qk_norm", "init_values"),
        **same_names(cfg, "scale_mlp", "scale_attn_inner", "class_token", "no_embed_class"),
        "dynamic_img_size": True,
        "mlp_ratio": mlp_ratio(round(cfg.embed_dim * cfg.mlp_ratio), cfg.embed_dim),
        "swiglu_mlp": cfg.mlp == "swiglu",
        "swiglu_align_to": int(cfg.mlp == "swiglu" and cfg.gate == "split" and not cfg.scale_mlp),  # 1: split, as it is
        "qkv_fused": cfg.qkv == "fused",
        "num_kv_heads": None if cfg.kv_heads is None else [cfg.kv_heads_of(index) for index in range(cfg.depth)],
        "attn_type": "rope" if cfg.kv_heads is not None or (cfg.qkv_bias and cfg.key_bias) else "eva",
        "attn_only_layer_scale": cfg.init_values is not None and cfg.layer_scale == "attention",
        "num_reg_tokens": cfg.reg_tokens,
        "use_abs_pos_emb": cfg.pos_embed == "learn",
        "use_rot_pos_emb": cfg.rope != "none",
        "use_post_norm": cfg.norm_position == "res-post",
        "use_pre_transformer_norm": cfg.pre_norm,
        "use_post_transformer_norm": cfg.final_norm and not cfg.fc_norm,
        "use_fc_norm": cfg.fc_norm,
        "global_pool": "token" if cfg.pool == "cls" else cfg.pool,
        "rope_rescale_coords": cfg.rope_rescale,
    }
    if cfg.pool == "map":
        args["attn_pool_num_heads"] = cfg.pool_heads or cfg.num_heads
        hidden = round(cfg.embed_dim * (cfg.mlp_ratio if cfg.pool_mlp_ratio is None else cfg.pool_mlp_ratio))
        args["attn_pool_mlp_ratio"] = mlp_ratio(hidden, cfg.embed_dim)
    if cfg.rope != "none":
        args |= {
            "rope_type": next(theirs for theirs, ours in ROPES.items() if ours == cfg.rope),
            "rope_rotate_half": cfg.rope_layout == "half",
            "rope_grid_indexing": "ij" if cfg.rope_axes == "yx" else "xy",
            "rope_temperature": cfg.rope_temperature,
            "rope_grid_offset": cfg.rope_offset,
            "ref_feat_shape": None if cfg.rope_ref_grid is None else list(pair(cfg.rope_ref_grid)),
        }
    return args


def _aimv2_args(cfg: ModernConfig) -> dict[str, Any]:
    """Return the arguments of timm's VisionTransformer for the shape of AIMv2."""
    return {
        "in_chans": cfg.in_channels,
        **same_names(cfg, "img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias"),
        "mlp_ratio": mlp_ratio(round(cfg.embed_dim * cfg.mlp_ratio), cfg.embed_dim),
    }


def modern_state(state: State, cfg: ModernConfig) -> tuple[State, ViTConfig]:
    """Return a model's tensors by timm's names, and its config; only NaFlexVit has other names than ours."""
    return naflex_state(state, cfg) if is_naflex(cfg) else (state, cfg)


def modern_plan(model: ModernViT) -> Export:
    """Export a folder for timm. Raises Inexpressible as `modern_config` does."""
    modern_config(model.config, preprocessing_of(model))
    return folder(model)

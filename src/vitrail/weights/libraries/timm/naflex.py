"""NaFlex ViTs of timm: SigLIP 2's, C-RADIO's and its own, whose positions are a grid of a size of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.settings import Preprocessing, ViTConfig, pair
from vitrail.settings.modern import ModernConfig, modern_name, parse_modern_name
from vitrail.weights.libraries.timm.card import pretrained_cfg
from vitrail.weights.libraries.timm.vit import POOLS
from vitrail.weights.library import Config, FamilyLayout, activation, from_list
from vitrail.weights.names import LINEAR_PATCH, Form, patch_of
from vitrail.weights.targets import Inexpressible, State, literal, mlp_ratio, same_names, with_token_rows

RESIZES = {  # by interpolation, antialiasing and whether corners are kept
    ("bicubic", True, False): "bicubic",
    ("bilinear", True, False): "bilinear",
    ("bicubic", False, False): "cubic",
    ("bilinear", False, False): "linear",
    ("bilinear", False, True): "linear-corners",
}
_PLAIN_VALUES: dict[str, tuple[Any, ...]] = {  # of NaFlexVitCfg's arguments, what a plain block has
    "rope_type": ("", "none"),
    "pos_embed": ("learned", "factorized"),
    "patchify_channels_last": (True,),
    "attn_gated": (False,),
    "num_kv_heads": (None,),
    "attn_layer": (None,),
}


def naflex_names(name: str) -> tuple[str, ...]:
    """Return timm's name: embedding, tokens and positions stand in `embeds`."""
    return (re.sub(r"^patch_embed\.|^(?=cls_token|reg_token|pos_embed)", "embeds.", name),)


def factorised_names(name: str) -> tuple[str, ...]:
    """Return timm's names of a model whose positions are those of rows and those of columns."""
    return ("embeds.pos_embed_y", "embeds.pos_embed_x") if name == "pos_embed" else naflex_names(name)


def _no_rows_and_columns(x: Tensor, cfg: Any) -> list[Tensor]:
    raise Inexpressible("positions are learned as a sum, and written as a grid")


def _write_patch(x: Tensor, cfg: ViTConfig) -> list[Tensor]:
    return LINEAR_PATCH.write(x, cfg) if is_linear(cfg) else [x]


def _write_grid(x: Tensor, cfg: Any) -> list[Tensor]:
    return [x.unflatten(1, cfg.position_grid)]


PATCH = Form(LINEAR_PATCH.read, _write_patch)
GRID = Form(lambda parts: parts[0].flatten(1, 2), _write_grid)  # (1, h, w, D)
ROWS_AND_COLUMNS = Form(lambda parts: (parts[0][:, :, None] + parts[1][:, None]).flatten(1, 2), _no_rows_and_columns)


def is_linear(cfg: ViTConfig) -> bool:
    """Return whether the patch projection is written as a linear layer: its width alone tells the channels of most patches."""
    height, width = pair(cfg.patch_size)
    return patch_of(cfg.in_channels * height * width) == (cfg.in_channels, height) and height == width


def naflex_form(name: str) -> Form | None:
    """Return the form of a tensor of ours."""
    return {"patch_embed.proj.weight": PATCH, "pos_embed": GRID}.get(name)


def factorised_form(name: str) -> Form | None:
    """Return the form of a tensor of ours where positions are factorised: their sum resizes linearly, as each of them does."""
    return ROWS_AND_COLUMNS if name == "pos_embed" else naflex_form(name)


def naflex_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig that architecture and model_args state. Raises ValueError for another computation."""
    name, args = str(config.get("architecture") or ""), dict(config.get("model_args") or {})
    for argument, values in _PLAIN_VALUES.items():
        if argument in args and args[argument] not in values:
            raise ValueError(f"timm's NaFlexVit with {argument} {args[argument]!r} is no model of ours; open it with timm")
    row = parse_modern_name(name) if name.startswith("naflexvit_") else None
    fields = {} if row is None else dict(vars(ModernConfig(**row)))
    size = (config.get("pretrained_cfg") or {}).get("input_size")
    if size:
        fields["img_size"] = tuple(size[1:])
    same = {"num_heads": "num_heads", "norm_eps": "norm_eps", "attn_pool_num_heads": "pool_heads", "img_size": "img_size"}
    same |= {"pos_embed_ar_preserving": "pos_square"}
    fields |= {ours: from_list(args[theirs]) for theirs, ours in same.items() if args.get(theirs) is not None}
    pool = args.get("global_pool", config.get("global_pool"))
    if pool is not None and pool not in POOLS:
        raise ValueError(f'timm\'s global_pool "{pool}" is none of {", ".join(POOLS)}; open it with timm')
    if pool is not None:
        fields["pool"] = POOLS[pool]
    if args.get("act_layer") is not None:
        fields["mlp"] = activation(str(args["act_layer"]).lower())
    if args.get("pool_include_prefix") is not None:
        fields["pool_include_prefix"] = bool(args["pool_include_prefix"])
    return {"norm_eps": 1e-6, **fields, **_resize(args, fields.get("pos_resize")), "rope": "none"}


def _resize(args: Mapping[str, Any], of_name: str | None) -> dict[str, str]:
    """Return how positions are resized, by arguments and the name's row; {} if neither tells."""
    given = [args.get(f"pos_embed_{one}") for one in ("interp_mode", "antialias", "align_corners")]
    if args.get("pos_embed") == "factorized" or given == [None] * 3:
        return {}
    default = next((key for key, ours in RESIZES.items() if ours == of_name), ("bicubic", True, False))
    key = tuple(old if new is None else new for old, new in zip(default, given, strict=True))
    if key not in RESIZES:
        raise ValueError(f"timm's positions, resized with {key}, are none of {', '.join(RESIZES.values())}; open it with timm")
    return {"pos_resize": RESIZES[key]}


def factorised_fields(config: Config) -> dict[str, Any]:
    """Return the fields of a model with factorised positions."""
    return {**naflex_fields(config), "pos_resize": "linear"}


_SHOWN = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight")
_OTHER_BLOCKS = r"gamma_[12]$|^rope\.|\.q_bias$|mlp\.norm\.|attn\.norm\.|fc1_g|norm_input|attn\.gate|attn_out_proj|q_proj"
_ASSUMES = {"rope": "no rotary positions, as in timm's naflexvit architectures"}
NAFLEX_LAYOUTS = (
    FamilyLayout(
        ModernConfig,
        "timm",
        _SHOWN,
        naflex_names,
        naflex_form,
        lacks=_OTHER_BLOCKS,
        fields=naflex_fields,
        assumes=_ASSUMES,
    ),
    FamilyLayout(
        ModernConfig,
        "timm",
        _SHOWN,
        factorised_names,
        factorised_form,
        lacks=_OTHER_BLOCKS,
        fields=factorised_fields,
        assumes=_ASSUMES,
    ),
)

# --------------------------------------------------------------------------------------------------------------------
# Writing

_FIXED: dict[str, tuple[Any, ...]] = {  # fields of which its plain blocks and its poolings have these values only
    "mlp": ("gelu", "gelu_tanh", "quick_gelu", "relu"),
    "norm_eps": (1e-6,),
    "norm_position": ("pre",),
    "layer_scale": ("both",),
    "qkv": ("fused",),
    "qk_norm_width": ("head",),
    "head_dim": (None,),
    "scale_attn_inner": (False,),
    "scale_mlp": (False,),
    "embed_norm": (False,),
    "patch_norm": (False,),
    "dist_token": (False,),
    "pool": ("cls", "avg", "map"),
    "pool_block": (True,),
    "head": ("linear",),
    "stem": ("patch",),
    "block": ("serial",),
    "attention": ("softmax",),
    "relative_bias": ("none",),
}


def is_naflex(cfg: ModernConfig) -> bool:
    """Return whether positions have a grid of their own, or are resized as no other class of timm does it."""
    resized = cfg.pos_grid is not None or cfg.pos_square or cfg.pos_resize != "bicubic"
    return cfg.rope == "none" and cfg.pos_embed == "learn" and resized


def naflex_config(cfg: ModernConfig, images: Preprocessing, licence: str | None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens a NaFlexVit. Raises Inexpressible for what it lacks."""
    for field, values in _FIXED.items():
        if getattr(cfg, field) not in values:
            only = " or ".join(map(literal, values))
            raise Inexpressible(f"timm's NaFlexVit has no {field} {literal(getattr(cfg, field))}, only {only}")
    lacks = {
        "biases of queries and values only": cfg.qkv_bias and not cfg.key_bias,
        "proj_bias other than mlp_bias": cfg.proj_bias != cfg.mlp_bias,
    }
    if lacking := next((what for what, has in lacks.items() if has), None):
        raise Inexpressible(f"timm's NaFlexVit has no {lacking}")
    name = modern_name(cfg)
    stem = {"first_conv": "embeds.proj"} if cfg.in_channels == 3 else {}
    return {
        "architecture": name if name.startswith("naflexvit_") else "naflexvit_base_patch16_map",
        "model_args": naflex_args(cfg),
        "pretrained_cfg": pretrained_cfg(cfg, images, licence, fixed_input_size=False, **stem, classifier="head"),
    }


def naflex_args(cfg: ModernConfig) -> dict[str, Any]:
    """Return the arguments of timm's NaFlexVit; those that its first versions lack only where they are not the defaults."""
    mode, antialias, corners = next(key for key, ours in RESIZES.items() if ours == cfg.pos_resize)
    args: dict[str, Any] = {
        "in_chans": cfg.in_channels,
        **same_names(cfg, "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias", "qk_norm", "proj_bias", "init_values"),
        **same_names(cfg, "class_token", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "pool_include_prefix"),
        "mlp_ratio": mlp_ratio(round(cfg.embed_dim * cfg.mlp_ratio), cfg.embed_dim),
        "act_layer": cfg.mlp,
        "norm_layer": {"layer": "layernorm", "rms": "rmsnorm"}[cfg.norm],
        "global_pool": "token" if cfg.pool == "cls" else cfg.pool,
        "embed_proj_type": "linear" if is_linear(cfg) else "conv",
        "pos_embed": "learned",
        "pos_embed_grid_size": list(cfg.position_grid),
        "pos_embed_interp_mode": mode,
        "pos_embed_ar_preserving": cfg.pos_square,
        **({} if antialias else {"pos_embed_antialias": False}),
        **({"pos_embed_align_corners": True} if corners else {}),
    }
    if cfg.pool == "map":
        args["attn_pool_num_heads"] = cfg.pool_heads or cfg.num_heads
        hidden = round(cfg.embed_dim * (cfg.mlp_ratio if cfg.pool_mlp_ratio is None else cfg.pool_mlp_ratio))
        args["attn_pool_mlp_ratio"] = mlp_ratio(hidden, cfg.embed_dim)
    return args


def naflex_state(state: State, cfg: ModernConfig) -> tuple[dict[str, Tensor], ViTConfig]:
    """Return a model's tensors by timm's names, and its config: the class token's position is added to the token."""
    placed, placed_cfg = with_token_rows(state, cfg, present=False)
    forms = {name: naflex_form(name) for name in placed}
    written = {name: value if (form := forms[name]) is None else form.write(value, cfg)[0] for name, value in placed.items()}
    return {naflex_names(name)[0]: value for name, value in written.items()}, placed_cfg

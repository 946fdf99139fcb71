"""NaFlex ViTs of timm: SigLIP 2's, C-RADIO's and its own, whose positions are a grid of a size of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.settings.modern import ModernConfig, parse_modern_name
from vitrail.weights.libraries.timm.vit import POOLS
from vitrail.weights.library import Config, FamilyLayout, activation, from_list
from vitrail.weights.names import LINEAR_PATCH, Form
from vitrail.weights.targets import Inexpressible

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
    """Return timm's name: embedding, tokens and positions stand in `embeds`, LayerScale in modules of its own."""
    name = re.sub(r"^patch_embed\.|^(?=cls_token|reg_token|pos_embed)", "embeds.", name)
    return (re.sub(r"\.gamma_(.)$", r".ls\1.gamma", name),)


def factorised_names(name: str) -> tuple[str, ...]:
    """Return timm's names of a model whose positions are those of rows and those of columns."""
    return ("embeds.pos_embed_y", "embeds.pos_embed_x") if name == "pos_embed" else naflex_names(name)


def _no_write(x: Tensor, cfg: Any) -> list[Tensor]:
    raise Inexpressible("timm's NaFlexVit is not written")


GRID = Form(lambda parts: parts[0].flatten(1, 2), _no_write)  # (1, h, w, D)
ROWS_AND_COLUMNS = Form(lambda parts: (parts[0][:, :, None] + parts[1][:, None]).flatten(1, 2), _no_write)


def naflex_form(name: str) -> Form | None:
    """Return the form of a tensor of ours."""
    return {"patch_embed.proj.weight": LINEAR_PATCH, "pos_embed": GRID}.get(name)


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

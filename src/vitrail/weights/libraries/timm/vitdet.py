"""ViTDet and SAM's image encoder in timm's VisionTransformerSAM, whose names ours are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitrail.models import VitDet
from vitrail.settings import Preprocessing, pair
from vitrail.settings.vitdet import VitDetConfig, parse_vitdet_name, spread_blocks
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.library import Config, Export, FamilyLayout, from_list
from vitrail.weights.targets import Inexpressible, literal, mlp_ratio, preprocessing_of, same_names

_EPS = 1e-6
"""Epsilon of its blocks with `norm_layer=None`; without that argument it is 1e-5."""


def vitdet_fields(config: Config) -> dict[str, Any]:
    """Return the fields that architecture, model_args and a live model state. Raises ValueError for rotary positions."""
    name, args = str(config.get("architecture") or ""), config.get("model_args") or {}
    row = parse_vitdet_name(name) if name.startswith("samvit_") else None
    if row is None or not isinstance(args, Mapping):
        return {}
    if args.get("use_rope"):
        raise ValueError("timm's use_rope true has rotary positions, which its published models don't; open it with timm")
    fields: dict[str, Any] = {"img_size": from_list(args.get("img_size", row["img_size"])), "norm_eps": 1e-5}
    if "norm_layer" in args or args.get("norm_eps"):
        fields["norm_eps"] = args.get("norm_eps", _EPS)
    if (sides := args.get("windows_of_blocks")) is not None:  # of a live model
        chosen = [block for block, side in enumerate(sides) if side == 0]
        return {**fields, "window_size": max(sides, default=0), "global_blocks": tuple(chosen)}
    depth = args.get("depth", row["depth"])
    blocks = args.get("global_attn_indexes", spread_blocks(row["depth"]))
    chosen = [block for block in blocks if block < depth]
    return {**fields, "window_size": args.get("window_size", VitDetConfig.window_size), "global_blocks": tuple(chosen)}


def has_grid(shape: Callable[[str], tuple[int, ...]]) -> bool:
    """Return whether absolute positions are a grid, as in timm's class, or there are none."""
    try:
        return len(shape("pos_embed")) == 4
    except KeyError:
        return True


VITDET_LAYOUT = FamilyLayout(
    VitDetConfig,
    "timm",
    shows=("blocks.0.attn.rel_pos_h", "blocks.0.mlp.fc1.weight", "patch_embed.proj.weight"),
    lacks=r"\.(q_norm|k_norm)\.|\.ls[12]\.|^(head\.(norm|pre_logits)|cls_token)",
    fits=has_grid,
    fields=vitdet_fields,
)


def vitdet_config(cfg: VitDetConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens a ViTDet. Raises Inexpressible for what its class lacks."""
    what = "timm's VisionTransformerSAM"
    for field, values in {
        "norm_eps": (1e-5, _EPS),
        "neck": ("conv", "norm"),
        "relative": ("decomposed", "none"),
        "residual_blocks": ((),),
        "pos_grid": (None,),
        "pos_resize": ("bicubic",),
    }.items():
        if getattr(cfg, field) not in values:
            raise Inexpressible(
                f"{what} has no {field} {literal(getattr(cfg, field))}, only {' or '.join(map(literal, values))}"
            )
    return {
        "architecture": "samvit_base_patch16",
        "model_args": {
            "in_chans": cfg.in_channels,
            **same_names(cfg, "img_size", "embed_dim", "depth", "num_heads", "qkv_bias", "window_size", "pre_norm"),
            "patch_size": list(pair(cfg.patch_size)),
            "mlp_ratio": mlp_ratio(round(cfg.embed_dim * cfg.mlp_ratio), cfg.embed_dim),
            "use_abs_pos": cfg.pos_embed == "learn",
            "use_rel_pos": cfg.relative == "decomposed",
            "global_attn_indexes": [block for block in range(cfg.depth) if cfg.is_global(block)],
            "neck_chans": cfg.neck_channels if cfg.neck == "conv" else 0,
            **({"norm_layer": None} if cfg.norm_eps == _EPS else {}),
        },
        "pretrained_cfg": pretrained_cfg(cfg, images, licence, fixed_input_size=True, **first_conv(cfg), classifier="head.fc"),
    }


def vitdet_plan(model: VitDet) -> Export:
    """Export a folder for timm. Raises Inexpressible as `vitdet_config` does."""
    vitdet_config(model.config, preprocessing_of(model))
    return folder(model)

"""Swin Transformers V2 of timm, whose names ours are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.models import SwinV2
from vitrail.settings import Preprocessing
from vitrail.settings.swin_v2 import SwinV2Config, parse_swin_v2_name
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.library import Config, Export, FamilyLayout
from vitrail.weights.targets import Inexpressible, preprocessing_of, same_names


def windows(config: Config) -> Mapping[str, Any]:
    """Return the fields of windows: of a live model, of the arguments that timm wrote, or of the architecture's name."""
    arguments = config.get("model_args")
    stated = arguments if isinstance(arguments, Mapping) else {}
    if stated.get("block_windows"):
        return {"block_windows": stated["block_windows"]}
    if stated.get("window_size") is not None:
        sides = stated["window_size"]
        units = stated.get("pretrained_window_sizes") or ()
        fields = {"pretrained_window_sizes": tuple(units)} if any(units) else {}
        if isinstance(sides, int):
            return {"window_size": sides, **fields}
        square = [side if isinstance(side, int) else side[0] for side in sides]
        return {"window_size": max(square), "window_sizes": tuple(square) if len(set(square)) > 1 else (), **fields}
    try:
        named = parse_swin_v2_name(str(config.get("architecture", "")).partition(".")[0]) or {}
    except ValueError:  # of no size of ours
        named = {}
    return {key: value for key, value in named.items() if "window" in key}


SWIN_V2_LAYOUT = FamilyLayout(
    SwinV2Config,
    "timm",
    shows=("layers.0.blocks.0.attn.cpb_mlp.0.weight",),
    ignored=r"relative_position_index$|relative_coords_table$|attn_mask$|k_bias$",
    fields=windows,
)


def swin_v2_config(cfg: SwinV2Config, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens the model. Raises Inexpressible for what timm's class can't be."""
    if cfg.norm_eps != SwinV2Config.norm_eps:
        raise Inexpressible(f"timm's SwinTransformerV2 has no norm_eps {cfg.norm_eps:g}")
    sides = [cfg.window(stage) for stage in range(len(cfg.depths))]
    for stage in range(len(cfg.depths)):
        height, width = cfg.map_at(stage)
        if sides[stage] > min(height, width):
            window = f"a window of {sides[stage]} to stage {stage}'s map of {height}x{width}"
            raise Inexpressible(f"timm's SwinTransformerV2 cuts {window}, and this model pads the map")
    return {
        "architecture": "swinv2_tiny_window8_256",
        "model_args": {
            "in_chans": cfg.in_channels,
            **same_names(cfg, "img_size", "patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias"),
            "window_size": [[side, side] for side in sides],
            "pretrained_window_sizes": list(cfg.pretrained_window_sizes) or [0] * len(sides),
        },
        "pretrained_cfg": pretrained_cfg(cfg, images, licence, fixed_input_size=True, **first_conv(cfg), classifier="head.fc"),
    }


def swin_v2_plan(model: SwinV2) -> Export:
    """Export a folder for timm. Raises Inexpressible as `swin_v2_config` does."""
    swin_v2_config(model.config, preprocessing_of(model))
    return folder(model)

"""Swin Transformers V2-CR of timm, whose stages ours call layers, and its older files with temperatures instead of scales."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.models import SwinV2Cr
from vitrail.settings import Preprocessing, pair
from vitrail.settings.swin_v2_cr import SwinV2CrConfig, parse_swin_v2_cr_name
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.library import Config, Export, FamilyLayout, from_list
from vitrail.weights.names import Form
from vitrail.weights.targets import Inexpressible, State, preprocessing_of, same_names

# --------------------------------------------------------------------------------------------------------------------
# Reading


def stage_names(name: str) -> tuple[str, ...]:
    """Return timm's name of a tensor of ours."""
    return (re.sub(r"^layers\.", "stages.", name),)


def old_names(name: str) -> tuple[str, ...]:
    """Return the name in timm's files of 2022."""
    (now,) = stage_names(name)
    return (re.sub(r"^head\.fc\.", "head.", now.replace("logit_scale", "tau")),)


def old_form(name: str) -> Form | None:
    """Convert the temperature τ to log(1 / τ)."""
    if not name.endswith("logit_scale"):
        return None
    return Form(lambda parts: -parts[0].log(), lambda value, cfg: [torch.exp(-value)])


def stated(config: Config) -> Mapping[str, Any]:
    """Return the fields of windows and epsilon: of the arguments that timm wrote, of a live model, or of the name.

    Raises ValueError for windows that the family can't have.
    """
    arguments = config.get("model_args")
    given: dict[str, Any] = dict(arguments) if isinstance(arguments, Mapping) else {}
    if given.get("always_partition"):
        raise ValueError("always_partition true pads maps that are smaller than a window, which are not cut here; use timm")
    fields = {name: from_list(given[name]) for name in ("img_size", "norm_eps") if given.get(name) is not None}
    if given.get("block_windows"):
        return {**fields, "block_windows": given["block_windows"]}
    for name in ("window_size", "window_ratio"):
        if given.get(name) is not None:
            fields[name] = one_value(name, given[name])
    try:
        named = parse_swin_v2_cr_name(str(config.get("architecture", "")).partition(".")[0]) or {}
    except ValueError:  # of no size of ours
        named = {}
    return {**({"img_size": named["img_size"]} if "img_size" in named and not config.get("pretrained_cfg") else {}), **fields}


def one_value(name: str, value: Any) -> Any:
    """Return timm's argument of windows for all stages: a side, (height, width), or the value that every stage has.

    Raises ValueError for values that differ between stages.
    """
    if not isinstance(value, list | tuple):
        return value
    values = {from_list(one) for one in value}
    if name == "window_size" and len(value) == 2 and all(isinstance(one, int) for one in value):
        return value[0], value[1]
    if len(values) != 1:
        raise ValueError(f"timm's {name} {list(value)} differs between stages, and here all have one; use timm")
    return values.pop()


_SHOWS = ("layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.meta_mlp.fc1.weight")
_IGNORED = r"attn_mask$|relative_coordinates_log$"
SWIN_V2_CR_LAYOUTS = (
    FamilyLayout(SwinV2CrConfig, "timm", shows=_SHOWS, names=stage_names, ignored=_IGNORED, fields=stated),
    FamilyLayout(SwinV2CrConfig, "timm", shows=_SHOWS, names=old_names, form=old_form, ignored=_IGNORED, fields=stated),
)

# --------------------------------------------------------------------------------------------------------------------
# Writing


def swin_v2_cr_config(cfg: SwinV2CrConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens the model. Raises Inexpressible for what timm's class can't be."""
    if not cfg.final_norm:
        raise Inexpressible("timm's SwinTransformerV2Cr has no final_norm false")
    if cfg.norm_eps != SwinV2CrConfig.norm_eps:
        raise Inexpressible(f"timm's SwinTransformerV2Cr has no norm_eps {cfg.norm_eps:g}")
    sides = pair(cfg.img_size)
    if any(side % cfg.patch_size for side in sides):
        cut = "x".join(str(side // cfg.patch_size * cfg.patch_size) for side in sides)
        image = f"{sides[0]}x{sides[1]} px to {cut} px, and this model pads it"
        raise Inexpressible(f"timm's SwinTransformerV2Cr cuts an image of {image}; load it with another img_size")
    windows = {"window_ratio": cfg.window_ratio} if cfg.window_size is None else {"window_size": list(pair(cfg.window_size))}
    shape = ("img_size", "patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "extra_norm_period", "extra_norm_stage")
    return {
        "architecture": "swinv2_cr_tiny_224",
        "model_args": {"in_chans": cfg.in_channels, **same_names(cfg, *shape), **windows},
        "pretrained_cfg": pretrained_cfg(cfg, images, licence, fixed_input_size=True, **first_conv(cfg), classifier="head.fc"),
    }


def swin_v2_cr_state(state: State) -> dict[str, Tensor]:
    """Return a model's tensors by timm's names."""
    return {stage_names(name)[0]: value for name, value in state.items()}


def swin_v2_cr_plan(model: SwinV2Cr) -> Export:
    """Export a folder for timm. Raises Inexpressible as `swin_v2_cr_config` does."""
    swin_v2_cr_config(model.config, preprocessing_of(model))
    return folder(model)

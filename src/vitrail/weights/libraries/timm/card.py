"""Parts of timm's config.json that all models have: preprocessing, classes, licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.models.backbone import Backbone
from vitrail.settings import Preprocessing
from vitrail.weights.eval_transform import IMAGENET, EvalTransform, filter_of, numbers, with_notes
from vitrail.weights.library import Config, Export, Labels
from vitrail.weights.targets import same_names

# --------------------------------------------------------------------------------------------------------------------
# Reading


def config_transform(config: Config) -> EvalTransform | None:
    """Return the transform of a pretrained_cfg, with or without the rest of config.json; defaults as resolve_data_config."""
    cfg = config.get("pretrained_cfg", config)
    if not isinstance(cfg, Mapping) or (cfg is config and not {"mean", "std"} <= cfg.keys()):
        return None
    where, notes = "timm's pretrained_cfg", list[str]()
    crop_pct = numbers(cfg.get("crop_pct") or 0.875, f"{where}: crop_pct", above_zero=True)[0]
    if crop_pct > 1:
        raise ValueError(f"{where}: crop_pct {crop_pct} must be at most 1; mend the file, or leave it out")
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash"):  # "border" pads what is not square
        notes.append(f'its crop mode "{mode}" is read as "center"')
    return EvalTransform(
        numbers(cfg.get("mean") or IMAGENET[0], f"{where}: mean"),
        numbers(cfg.get("std") or IMAGENET[1], f"{where}: std", above_zero=True),
        crop_pct,
        "squash" if mode == "squash" else "center",
        filter_of(cfg.get("interpolation") or "bicubic", notes),
        with_notes(where, notes),
    )


def labels(config: Config) -> Labels:
    """Return the label_names of config.json or its pretrained_cfg."""
    pretrained = config.get("pretrained_cfg")
    inner = pretrained.get("label_names") if isinstance(pretrained, Mapping) else None
    return Labels(config.get("label_names") or inner or ())


# --------------------------------------------------------------------------------------------------------------------
# Writing


def pretrained_cfg(cfg: Any, images: Preprocessing, licence: str | None, **more: Any) -> dict[str, Any]:
    """Return the part of config.json about the weights, which all models have."""
    return {
        "input_size": [cfg.in_channels, *images.img_size],
        **same_names(images, "mean", "std", "crop_pct", "crop_mode", "interpolation"),
        "num_classes": cfg.num_classes,
        **more,
        **({"license": licence} if licence else {}),
    }


def first_conv(cfg: Any) -> dict[str, Any]:
    """Name the stem. With other channels, timm before 1.0.27 would discard it instead of loading it as it is."""
    return {"first_conv": "patch_embed.proj"} if cfg.in_channels in (1, 3) else {}


def folder(model: Backbone) -> Export:
    """Export a folder for `create_model("local-dir:…")`, which is a run folder too."""
    return Export("timm", 'timm.create_model("local-dir:PATH", pretrained=True)', model=model)

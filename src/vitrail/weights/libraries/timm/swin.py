"""Swin Transformers of timm, whose names ours are."""

from __future__ import annotations

from typing import Any

from vitrail.models import Swin
from vitrail.settings import Preprocessing
from vitrail.settings.swin import SwinConfig
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.library import Export, FamilyLayout
from vitrail.weights.targets import Inexpressible, preprocessing_of, same_names

SWIN_LAYOUT = FamilyLayout(
    SwinConfig,
    "timm",
    shows=("layers.0.blocks.0.attn.relative_position_bias_table",),
    ignored=r"relative_position_index$|attn_mask$",
)


def swin_config(cfg: SwinConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens a Swin Transformer. Raises Inexpressible for another epsilon."""
    if not cfg.final_norm:
        raise Inexpressible("timm's SwinTransformer has no final_norm false")
    if cfg.norm_eps != SwinConfig.norm_eps:
        raise Inexpressible(f"timm's SwinTransformer has no norm_eps {cfg.norm_eps:g}")
    return {
        "architecture": "swin_tiny_patch4_window7_224",
        "model_args": {
            "in_chans": cfg.in_channels,
            **same_names(cfg, "img_size", "patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio"),
            "window_size": cfg.window_sizes or cfg.window_size,
        },
        "pretrained_cfg": pretrained_cfg(
            cfg,
            images,
            licence,
            fixed_input_size=True,
            **first_conv(cfg),
            classifier="head.fc",
        ),
    }


def swin_plan(model: Swin) -> Export:
    """Export a folder for timm. Raises Inexpressible as `swin_config` does."""
    swin_config(model.config, preprocessing_of(model))
    return folder(model)

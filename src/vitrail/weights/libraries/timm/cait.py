"""CaiT of timm, whose names ours are, and those of the paper's code."""

from __future__ import annotations

from typing import Any

from vitrail.models import Cait
from vitrail.settings import Preprocessing
from vitrail.settings.cait import CaitConfig
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.library import Config, Export, FamilyLayout, from_list
from vitrail.weights.targets import Inexpressible, mlp_ratio, preprocessing_of, same_names


def cait_fields(config: Config) -> dict[str, Any]:
    """Return the image size that timm's class was built for, which need not be that of the published weights."""
    args = config.get("model_args") or {}
    return {"img_size": from_list(args["img_size"])} if args.get("img_size") is not None else {}


CAIT_LAYOUT = FamilyLayout(
    CaitConfig, "timm", shows=("blocks_token_only.0.attn.q.weight", "blocks.0.attn.proj_l.weight"), fields=cait_fields
)


def cait_config(cfg: CaitConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens a CaiT. Raises Inexpressible for another epsilon."""
    if cfg.norm_eps != CaitConfig.norm_eps:
        raise Inexpressible(f"timm's Cait has no norm_eps {cfg.norm_eps:g}")
    ratio = mlp_ratio(round(cfg.embed_dim * cfg.mlp_ratio), cfg.embed_dim)
    return {
        "architecture": "cait_xxs24_224",
        "model_args": {
            "in_chans": cfg.in_channels,
            **same_names(cfg, "img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias"),
            "depth_token_only": cfg.class_depth,
            "mlp_ratio": ratio,
            "mlp_ratio_token_only": ratio,
            "init_values": cfg.layer_scale,
        },
        "pretrained_cfg": pretrained_cfg(cfg, images, licence, fixed_input_size=True, **first_conv(cfg), classifier="head"),
    }


def cait_plan(model: Cait) -> Export:
    """Export a folder for timm. Raises Inexpressible as `cait_config` does."""
    cait_config(model.config, preprocessing_of(model))
    return folder(model)

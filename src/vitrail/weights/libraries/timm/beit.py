"""BEiT of timm and of the paper's code, whose names ours are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.models import Beit
from vitrail.settings import Preprocessing
from vitrail.settings.beit import BeitConfig
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.library import Config, Export, FamilyLayout, from_list
from vitrail.weights.targets import Inexpressible, preprocessing_of, same_names


def stated(config: Config) -> Mapping[str, Any]:
    """Return the fields that timm's arguments state: the image size, the pooling, and the epsilon of a live model."""
    arguments = config.get("model_args")
    if not isinstance(arguments, Mapping):
        return {}
    fields = {name: from_list(arguments[name]) for name in ("img_size", "norm_eps") if arguments.get(name) is not None}
    pool = {"avg": "avg", "token": "cls"}.get(str(arguments.get("global_pool")))
    return fields if pool is None else {**fields, "pool": pool}


_IGNORED = r"relative_position_index$|k_bias$"
BEIT_LAYOUTS = tuple(
    FamilyLayout(BeitConfig, "timm", shows=(name,), ignored=_IGNORED, fields=stated)
    for name in ("blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table")
)


def beit_config(cfg: BeitConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens a BEiT. Raises Inexpressible for another epsilon."""
    if cfg.norm_eps != BeitConfig.norm_eps:
        raise Inexpressible(f"timm's Beit has no norm_eps {cfg.norm_eps:g}")
    return {
        "architecture": "beit_base_patch16_224",
        "model_args": {
            "in_chans": cfg.in_channels,
            **same_names(cfg, "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"),
            "init_values": cfg.init_values or 0.0,  # null would be the architecture's own
            "use_abs_pos_emb": cfg.pos_embed == "learn",
            "use_rel_pos_bias": cfg.relative_bias in ("block", "both"),
            "use_shared_rel_pos_bias": cfg.relative_bias in ("shared", "both"),
            "global_pool": "avg" if cfg.pool == "avg" else "token",
            "use_fc_norm": cfg.fc_norm,
        },
        "pretrained_cfg": pretrained_cfg(cfg, images, licence, fixed_input_size=True, **first_conv(cfg), classifier="head"),
    }


def beit_plan(model: Beit) -> Export:
    """Export a folder for timm. Raises Inexpressible as `beit_config` does."""
    beit_config(model.config, preprocessing_of(model))
    return folder(model)

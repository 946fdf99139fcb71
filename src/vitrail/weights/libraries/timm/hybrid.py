"""Hybrid ViTs of timm, whose names ours are."""

from __future__ import annotations

import dataclasses
from typing import Any

from vitrail.models import Hybrid
from vitrail.models.resnet_stem import KINDS
from vitrail.settings import Preprocessing, pair
from vitrail.settings.hybrid import HYBRID_SIZES, TIMM_NAMES, HybridConfig
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.libraries.timm.vit import VIT, config_fields, model_args
from vitrail.weights.library import Export, FamilyLayout
from vitrail.weights.targets import Inexpressible, check, literal, preprocessing_of

HYBRID_LAYOUTS = tuple(
    FamilyLayout(
        HybridConfig, "timm", shows=(f"patch_embed.backbone.{first}.weight", "blocks.0.attn.qkv.weight"), fields=config_fields
    )
    for first in KINDS
)
_TIMM_NAMES = {ours: theirs for theirs, ours in TIMM_NAMES.items()}
_BY_CNN = {  # architectures by the network, which is no argument of timm
    (size.cnn, size.cnn_depths): f"{_TIMM_NAMES.get(name, name)}_224" for name, size in HYBRID_SIZES.items()
}
_CLASS = dataclasses.replace(VIT, values={**VIT.values, "norm_eps": (1e-6,)})
_PATCHES_DIM = HYBRID_SIZES["vit_base_mci"].embed_dim


def hybrid_config(model: Hybrid, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm opens a hybrid. Raises Inexpressible for a CNN that timm does not have."""
    cfg = model.config
    check(cfg, _CLASS)
    architecture = _BY_CNN.get((cfg.cnn, cfg.cnn_depths))
    if architecture is None:
        known = " or ".join(str(depths) for cnn, depths in _BY_CNN if cnn == cfg.cnn)
        raise Inexpressible(f'timm has no hybrid of cnn "{cfg.cnn}" with cnn_depths {cfg.cnn_depths}, only {known}')
    fixed: dict[str, Any] = {"cnn_eps": "timm"}
    fixed |= {"embed_dim": _PATCHES_DIM} if cfg.cnn == "patches" else {"cnn_width": HybridConfig.cnn_width}
    for name, value in fixed.items():
        if getattr(cfg, name) != value:
            way = f"; load it with cnn_eps={literal(value)}, which computes nearly the same" if name == "cnn_eps" else ""
            raise Inexpressible(f"timm's hybrids have no {name} {literal(getattr(cfg, name))}, only {literal(value)}{way}")
    if cfg.pos_embed == "none" and (cfg.class_token or cfg.reg_tokens):
        raise Inexpressible('timm\'s hybrids have no pos_embed "none" with a class token or registers')
    cells = [side // cfg.cnn_stride for side in pair(cfg.patch_size)]
    return {
        "architecture": architecture,
        "model_args": {**model_args(cfg), "patch_size": cells[0] if cells[0] == cells[1] else cells},
        "pretrained_cfg": pretrained_cfg(
            cfg,
            images,
            licence,
            fixed_input_size=True,
            **({"first_conv": model.stems[0]} if first_conv(cfg) else {}),
            classifier="head",
        ),
    }


def hybrid_plan(model: Hybrid) -> Export:
    """Export a folder for timm. Raises Inexpressible as `hybrid_config` does."""
    hybrid_config(model, preprocessing_of(model))
    export = folder(model)
    if model.config.cnn != "resnet-d":
        return export
    opens = 'timm.create_model("local-dir:PATH", checkpoint_path="PATH/model.safetensors")'
    note = "with pretrained=True timm downloads weights of its ResNet-D first, to overwrite them: give checkpoint_path instead"
    return dataclasses.replace(export, opens=opens, notes=(note,))

"""Swin Transformers V2 of transformers: names, and config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitrail.models import SwinV2
from vitrail.settings import pair
from vitrail.settings.swin_v2 import SwinV2Config, windows_at
from vitrail.weights.libraries.transformers.names import Spelling
from vitrail.weights.libraries.transformers.write import image_processor, label_config, sides
from vitrail.weights.library import Config, Export, FamilyLayout
from vitrail.weights.targets import Inexpressible, preprocessing_of, rename_family, same_names

PARTS: Spelling = {
    "patch_embed.proj.": "swinv2.embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "swinv2.embeddings.norm.",
    "layers.": "swinv2.encoder.layers.",
    ".attn.qkv.": ".attention.self.{}.",
    ".attn.q_bias": ".attention.self.query.bias",
    ".attn.v_bias": ".attention.self.value.bias",
    ".attn.logit_scale": ".attention.self.logit_scale",
    ".attn.cpb_mlp.": ".attention.self.continuous_position_bias_mlp.",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    "head.fc.": "classifier.",
}


def swin_v2_names(name: str) -> tuple[str, ...]:
    """Return the name, or those of query, key and value: patch merging stands at the end of a stage."""
    if merging := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"swinv2.encoder.layers.{int(merging[1]) - 1}.downsample.{merging[2]}",)
    name = re.sub(r"^norm\.", "swinv2.layernorm.", name)
    for ours, theirs in PARTS.items():
        name = name.replace(ours, theirs)
    return tuple(name.format(part) for part in ("query", "key", "value")) if "{}" in name else (name,)


def stated(config: Config) -> Mapping[str, Any]:
    """Return the windows of config.json, cut down to the maps of its image size as the class does, and the epsilon."""
    if config.get("use_absolute_embeddings"):
        raise ValueError("use_absolute_embeddings is no part of a Swin Transformer V2 of Vitrail; open it with transformers")
    if "window_size" not in config:
        return {}
    patch, window, depths = config.get("patch_size", 4), config["window_size"], config.get("depths", (2, 2, 6, 2))
    size = config.get("image_size", 224)
    side = size if isinstance(size, int) else min(size)
    units = tuple(config.get("pretrained_window_sizes") or ())
    return {
        "window_size": window,
        "window_sizes": windows_at(window, img_size=side, patch_size=patch, stages=len(depths)),
        "pretrained_window_sizes": units if any(units) else (),
        "norm_eps": config.get("layer_norm_eps", SwinV2Config.norm_eps),
    }


SWIN_V2_LAYOUT = FamilyLayout(
    SwinV2Config,
    "transformers",
    shows=("patch_embed.proj.weight", "layers.0.blocks.0.attn.logit_scale"),
    names=swin_v2_names,
    encoder="swinv2.",
    ignored=r"relative_position_index$|relative_coords_table$",
    fields=stated,
)


def swin_v2_plan(model: SwinV2) -> Export:
    """Export a folder for from_pretrained. Raises Inexpressible for what its class can't be."""
    cfg, what = model.config, "transformers' Swinv2ForImageClassification"
    if not cfg.num_classes or not cfg.qkv_bias:
        raise Inexpressible(f"{what} has no {'qkv_bias False' if cfg.num_classes else 'num_classes 0'} in its weights")
    windows = tuple(cfg.window(stage) for stage in range(len(cfg.depths)))
    theirs = tuple(min(max(windows), *cfg.map_at(stage)) for stage in range(len(cfg.depths)))
    if windows != theirs:
        size = "x".join(map(str, pair(cfg.img_size)))
        raise Inexpressible(f"{what} has windows of {theirs} at {size} px, and this model of {windows}")
    config = {
        "architectures": ["Swinv2ForImageClassification"],
        "model_type": "swinv2",
        "image_size": sides(cfg.img_size),
        "num_channels": cfg.in_channels,
        **same_names(cfg, "patch_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias"),
        "window_size": max(windows),
        "pretrained_window_sizes": list(cfg.pretrained_window_sizes) or [0] * len(windows),
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.norm_eps,
        **label_config(model.classes, num_classes=cfg.num_classes, multi_label=model.multi_label),
        "torch_dtype": "float32",
    }
    return Export(
        "hf",
        'transformers.Swinv2ForImageClassification.from_pretrained("PATH")',
        tensors=rename_family(model, SWIN_V2_LAYOUT),
        beside={"config.json": config, "preprocessor_config.json": image_processor(preprocessing_of(model), "ViT")},
    )

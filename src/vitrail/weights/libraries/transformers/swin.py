"""Swin Transformers of transformers: names of both forms, and config.json."""

from __future__ import annotations

import functools
import re

from vitrail.models import Swin
from vitrail.settings.swin import SwinConfig
from vitrail.weights.libraries.transformers.names import Spelling
from vitrail.weights.libraries.transformers.write import image_processor, label_config, sides
from vitrail.weights.library import Export, FamilyLayout
from vitrail.weights.targets import Inexpressible, preprocessing_of, rename_family, same_names

SWIN_PARTS: Spelling = {
    "patch_embed.proj.": "swin.embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "swin.embeddings.norm.",
    "layers.": "swin.encoder.layers.",
    ".attn.qkv.": ".attention.{}_proj.",
    ".attn.relative_position_bias_table": ".attention.relative_position_bias.relative_position_bias_table",
    ".attn.proj.": ".attention.o_proj.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    "head.fc.": "classifier.",
}
OLD_SWIN_PARTS: Spelling = {
    ".attention.relative_position_bias.": ".attention.self.",
    ".attention.q_proj.": ".attention.self.query.",
    ".attention.k_proj.": ".attention.self.key.",
    ".attention.v_proj.": ".attention.self.value.",
    ".attention.o_proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


def swin_names(name: str) -> tuple[str, ...]:
    """Return the name, or those of query, key and value, in version 5: patch merging stands at the end of a stage."""
    if merging := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"swin.encoder.layers.{int(merging[1]) - 1}.downsample.{merging[2]}",)
    name = re.sub(r"^norm\.", "swin.layernorm.", name)
    for ours, theirs in SWIN_PARTS.items():
        name = name.replace(ours, theirs)
    return tuple(name.format(x) for x in "qkv") if "{}" in name else (name,)


def old_swin_names(name: str) -> tuple[str, ...]:
    """Return the name, or those of query, key and value, before version 5, which files on the Hub have."""
    names = swin_names(name)
    for today, before in OLD_SWIN_PARTS.items():
        names = tuple(one.replace(today, before) for one in names)
    return names


SHOWS = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight")
_IGNORED = r"relative_position_index$"
SWIN_LAYOUT = FamilyLayout(SwinConfig, "transformers", SHOWS, swin_names, encoder="swin.", ignored=_IGNORED)
OLD_SWIN_LAYOUT = FamilyLayout(
    SwinConfig,
    "transformers",
    SHOWS,
    old_swin_names,
    encoder="swin.",
    ignored=_IGNORED,
    lacks=r"\.logit_scale$",  # of version 2, whose other names are the same
)
NO_NORM = r"(^|\.)layernorm\.weight$"


def donut_names(name: str) -> tuple[str, ...]:
    """Return the name, or those of query, key and value, in Donut's encoder."""
    return tuple(re.sub(r"^swin\.", "donut.", one) for one in swin_names(name))


def old_donut_names(name: str) -> tuple[str, ...]:
    """Return the names before version 5."""
    return tuple(re.sub(r"^swin\.", "donut.", one) for one in old_swin_names(name))


_DONUT = functools.partial(
    FamilyLayout,
    SwinConfig,
    "transformers Donut",
    SHOWS,
    encoder="donut.",
    ignored=_IGNORED,
    lacks=NO_NORM,
    fields=lambda config: {"final_norm": False},
    assumes={"final_norm": "Donut's encoder, which has no norm after the last block"},
)
DONUT_LAYOUTS = (_DONUT(names=donut_names), _DONUT(names=old_donut_names))


def swin_plan(model: Swin) -> Export:
    """Export a folder for from_pretrained. Raises Inexpressible for a model without a head, whose class has other names."""
    cfg = model.config
    if cfg.window_sizes:
        raise Inexpressible(f"transformers' Swin has no window_sizes {cfg.window_sizes}, only one window for all stages")
    if not cfg.num_classes:
        raise Inexpressible("transformers' SwinForImageClassification has no num_classes 0")
    if not cfg.final_norm:
        raise Inexpressible("transformers' SwinForImageClassification has no final_norm false")
    config = {
        "architectures": ["SwinForImageClassification"],
        "model_type": "swin",
        "image_size": sides(cfg.img_size),
        "num_channels": cfg.in_channels,
        **same_names(cfg, "patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"),
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.norm_eps,
        **label_config(model.classes, num_classes=cfg.num_classes, multi_label=model.multi_label),
        "torch_dtype": "float32",
    }
    return Export(
        "hf",
        'transformers.SwinForImageClassification.from_pretrained("PATH")',
        tensors=rename_family(model, SWIN_LAYOUT),
        beside={"config.json": config, "preprocessor_config.json": image_processor(preprocessing_of(model), "ViT")},
    )

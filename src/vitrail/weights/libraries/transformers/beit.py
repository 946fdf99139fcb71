"""BEiT and data2vec's image model of transformers: names of both forms, and config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitrail.models import Beit
from vitrail.settings import pair
from vitrail.settings.beit import BeitConfig
from vitrail.weights.libraries.transformers.config import DEFAULTS, vision_config
from vitrail.weights.libraries.transformers.names import Spelling
from vitrail.weights.libraries.transformers.write import image_processor, label_config, sides
from vitrail.weights.library import Config, Export, FamilyLayout
from vitrail.weights.targets import Inexpressible, preprocessing_of, rename_family

PARTS: Spelling = {  # as files have them, and data2vec's class; transformers 5 renames BEiT's when it opens them
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "rel_pos_bias.": "encoder.relative_position_bias.",
    "blocks.": "encoder.layer.",
    ".attn.qkv.": ".attention.attention.{}.",
    ".attn.q_bias": ".attention.attention.query.bias",
    ".attn.v_bias": ".attention.attention.value.bias",
    ".attn.relative_position_bias_table": ".attention.attention.relative_position_bias.relative_position_bias_table",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".gamma_": ".lambda_",
    "fc_norm.": "pooler.layernorm.",
}
NEW_PARTS: Spelling = {
    "encoder.relative_position_bias.": "shared_position_bias.",
    "encoder.layer.": "layers.",
    ".attention.attention.relative_position_bias.": ".relative_position_bias.",
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
}


def names_behind(prefix: str, renamed: Spelling) -> Callable[[str], tuple[str, ...]]:
    """Return the function from our name to those of a class, whose encoder is behind a prefix."""

    def names(name: str) -> tuple[str, ...]:
        if name.startswith("head."):
            return (name.replace("head.", "classifier."),)
        if name.startswith("norm."):
            return (f"{prefix}layernorm.{name[5:]}",)
        for ours, theirs in PARTS.items():
            name = name.replace(ours, theirs)
        parts = [name.format(part) for part in ("query", "key", "value")] if "{}" in name else [name]
        for before, today in renamed.items():
            parts = [one.replace(before, today) for one in parts]
        return tuple(f"{prefix}{one}" for one in parts)

    return names


def stated(config: Config) -> Mapping[str, Any]:
    """Return what config.json states and no tensor shows. Raises ValueError for an activation that BEiT does not have."""
    config = {**DEFAULTS["beit"], **vision_config(config)}
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f'activation "{config["hidden_act"]}" is not GELU, so this is no BEiT; open it with transformers')
    return {"norm_eps": config["layer_norm_eps"]}


def layouts(encoder: str, renamed: Spelling) -> tuple[FamilyLayout, ...]:
    """Return the layouts of one class: with tables in the blocks, or with a shared one alone."""
    names = names_behind(encoder, renamed)
    return tuple(
        FamilyLayout(
            BeitConfig,
            "transformers",
            shows=(name,),
            names=names,
            encoder=encoder,
            ignored=r"relative_position_index$",
            fields=stated,
        )
        for name in ("blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table")
    )


BEIT_LAYOUTS = (*layouts("beit.", {}), *layouts("beit.", NEW_PARTS), *layouts("data2vec_vision.", {}))


def beit_plan(model: Beit) -> Export:
    """Export a folder for from_pretrained. Raises Inexpressible for what its class can't be."""
    cfg, what = model.config, "transformers' BeitForImageClassification"
    height, width = pair(cfg.img_size)
    if not cfg.num_classes:
        raise Inexpressible(f"{what} has no num_classes 0")
    if cfg.fc_norm != (cfg.pool == "avg") or not cfg.qkv_bias:
        raise Inexpressible(f'{what} has no pool "{cfg.pool}" with fc_norm {cfg.fc_norm} and qkv_bias {cfg.qkv_bias}')
    if height != width and cfg.relative_bias != "none":
        raise Inexpressible(f"{what} reads relative positions of {height}x{width} px in the wrong order")
    config = {
        "architectures": ["BeitForImageClassification"],
        "model_type": "beit",
        "hidden_size": cfg.embed_dim,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": round(cfg.embed_dim * cfg.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.norm_eps,
        "image_size": sides(cfg.img_size),
        "patch_size": cfg.patch_size,
        "num_channels": cfg.in_channels,
        "use_absolute_position_embeddings": cfg.pos_embed == "learn",
        "use_relative_position_bias": cfg.relative_bias in ("block", "both"),
        "use_shared_relative_position_bias": cfg.relative_bias in ("shared", "both"),
        "use_mean_pooling": cfg.pool == "avg",
        "layer_scale_init_value": 0.0 if cfg.init_values is None else max(cfg.init_values, 1e-6),
        **label_config(model.classes, num_classes=cfg.num_classes, multi_label=model.multi_label),
        "torch_dtype": "float32",
    }
    return Export(
        "hf",
        'transformers.BeitForImageClassification.from_pretrained("PATH")',
        tensors=rename_family(model, BEIT_LAYOUTS[0]),
        beside={"config.json": config, "preprocessor_config.json": image_processor(preprocessing_of(model), "Beit")},
    )

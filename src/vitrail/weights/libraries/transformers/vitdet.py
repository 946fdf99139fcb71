"""ViTDet, and the image encoders of SAM, SAM-HQ and SAM 3, of transformers: names, config.json, and writing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vitrail.models import VitDet
from vitrail.settings import pair
from vitrail.settings.vitdet import VitDetConfig
from vitrail.weights.libraries.transformers.config import vision_config
from vitrail.weights.libraries.transformers.names import Spelling
from vitrail.weights.libraries.transformers.write import image_processor, sides
from vitrail.weights.library import Config, Export, FamilyLayout, from_list
from vitrail.weights.names import CLASS_AND_GRID, GRID
from vitrail.weights.targets import Inexpressible, literal, preprocessing_of, rename_family

# --------------------------------------------------------------------------------------------------------------------
# Names: the parts of ours that are others there; "{}" stands for query, key and value

SAM: Spelling = {
    r"^patch_embed\.proj\.": "patch_embed.projection.",
    r"^blocks\.": "layers.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.mlp\.fc(\d)\.": r".mlp.lin\1.",
    r"^neck\.0\.": "neck.conv1.",
    r"^neck\.1\.": "neck.layer_norm1.",
    r"^neck\.2\.": "neck.conv2.",
    r"^neck\.3\.": "neck.layer_norm2.",
}
VITDET: Spelling = {
    r"^patch_embed\.proj\.": "embeddings.projection.",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.": ".attention.",
}
SAM3: Spelling = {
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^norm_pre\.": "layer_norm.",
    r"^blocks\.": "layers.",
    r"\.norm(\d)\.": r".layer_norm\1.",
    r"\.attn\.qkv\.": ".attention.{}_proj.",
    r"\.attn\.proj\.": ".attention.o_proj.",
}


def names_of(spelling: Spelling, prefix: str = "") -> Callable[[str], tuple[str, ...]]:
    """Return the function from our name to those of a class, whose encoder is behind a prefix."""

    def names(name: str) -> tuple[str, ...]:
        for pattern, theirs in spelling.items():
            name = re.sub(pattern, theirs, name)
        parts = [name.format(part) for part in "qkv"] if "{}" in name else [name]
        return tuple(f"{prefix}{one}" for one in parts)

    return names


# --------------------------------------------------------------------------------------------------------------------
# config.json

_DEFAULTS: dict[str, dict[str, Any]] = {  # by class: what config.json omits if it equals this
    "SAM": {"image_size": 1024, "window_size": 14, "global_attn_indexes": (2, 5, 8, 11), "num_hidden_layers": 12},
    "ViTDet": {"image_size": 224, "window_size": 0, "window_block_indices": (), "num_hidden_layers": 12},
    "SAM 3": {"image_size": 1008, "window_size": 24, "global_attn_indexes": (7, 15, 23, 31), "num_hidden_layers": 32},
}
_FIXED: dict[str, dict[str, Any]] = {  # by class: what its code computes, whatever the config
    "SAM": {},
    "ViTDet": {"pos_resize": "cubic"},
    "SAM 3": {"relative": "rotary", "pos_resize": "tile"},
}
_THETA = 1e4


def stated_by(kind: str) -> Callable[[Config], Mapping[str, Any]]:
    """Return the function from a config.json to the fields that a class has by it and by its code."""

    def stated(config: Config) -> Mapping[str, Any]:
        fields: dict[str, Any] = {"norm_eps": 1e-6, **_FIXED[kind]}
        if not config:
            return fields
        config = {**_DEFAULTS[kind], "num_attention_heads": 16 if kind == "SAM 3" else 12, **encoder_of(config)}
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(
                f'activation "{config["hidden_act"]}" is not GELU, so this is no ViTDet; open it with transformers'
            )
        if (config.get("rope_parameters") or {}).get("rope_theta", _THETA) != _THETA:
            raise ValueError(f"rope_theta {config['rope_parameters']['rope_theta']} is not 10000; open it with transformers")
        blocks = range(config["num_hidden_layers"])
        if kind == "ViTDet":
            chosen = [block for block in blocks if block not in config["window_block_indices"]]
        else:
            chosen = [
                block for block in blocks if block in (config["global_attn_indexes"] or _DEFAULTS[kind]["global_attn_indexes"])
            ]
        windows = {"window_size": config["window_size"], "global_blocks": tuple(chosen)}
        image = {"img_size": from_list(config["image_size"]), "num_heads": config["num_attention_heads"]}
        return {**fields, **windows, **image, "norm_eps": config.get("layer_norm_eps", 1e-6)}

    return stated


def encoder_of(config: Config) -> Config:
    """Return the part of a config.json that is about the image encoder: SAM 3's is two levels down."""
    config = vision_config(config)
    inner = config.get("backbone_config")
    return inner if isinstance(inner, Mapping) else config


# --------------------------------------------------------------------------------------------------------------------
# Layouts

_PROJ, _QKV, _TABLE = "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.rel_pos_h"
SAM_LAYOUT = FamilyLayout(
    VitDetConfig,
    "transformers SAM",
    shows=("neck.0.weight", _PROJ, _QKV, "blocks.0.mlp.fc1.weight"),
    names=names_of(SAM, "vision_encoder."),
    encoder="vision_encoder.",
    fields=stated_by("SAM"),
)
VITDET_LAYOUT = FamilyLayout(
    VitDetConfig,
    "transformers ViTDet",
    shows=(_PROJ, _QKV, "blocks.0.mlp.fc1.weight"),
    names=names_of(VITDET),
    form=lambda name: CLASS_AND_GRID if name == "pos_embed" else None,
    fields=stated_by("ViTDet"),
)
SAM3_LAYOUT = FamilyLayout(
    VitDetConfig,
    "transformers SAM 3",
    shows=("norm_pre.weight", _PROJ, _QKV, "blocks.0.norm1.weight"),
    names=names_of(SAM3),
    form=lambda name: GRID if name == "pos_embed" else None,
    lacks=r"layer_scale",
    fields=stated_by("SAM 3"),
)
VITDET_LAYOUTS = (SAM_LAYOUT, VITDET_LAYOUT, SAM3_LAYOUT)

# --------------------------------------------------------------------------------------------------------------------
# Writing


def vitdet_plan(model: VitDet) -> Export:
    """Export a folder for from_pretrained. Raises Inexpressible for what its class can't be."""
    cfg = model.config
    if cfg.relative == "rotary":
        cls, layout, more = "Sam3ViTModel", SAM3_LAYOUT, _sam3(cfg)
    elif cfg.neck == "conv":
        cls, layout, more = "SamVisionModel", SAM_LAYOUT, _sam(cfg)
    else:
        cls, layout, more = "VitDetModel", VITDET_LAYOUT, _vitdet(cfg)
    config = {
        "architectures": [cls],
        "hidden_size": cfg.embed_dim,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.norm_eps,
        "image_size": sides(cfg.img_size),
        "patch_size": sides(cfg.patch_size),
        "num_channels": cfg.in_channels,
        "window_size": cfg.window_size,
        **more,
        "torch_dtype": "float32",
    }
    return Export(
        "hf",
        f'transformers.{cls}.from_pretrained("PATH")',
        tensors=rename_family(model, layout),
        beside={"config.json": config, "preprocessor_config.json": image_processor(preprocessing_of(model), "ViT")},
    )


def _require(cfg: VitDetConfig, what: str, **values: tuple[Any, ...]) -> None:
    """Raise Inexpressible for a field with a value that transformers' class does not have."""
    what = f"transformers' {what}"
    if cfg.num_classes:
        raise Inexpressible(f"{what} has no num_classes {cfg.num_classes}, only 0; load the model with num_classes=0")
    for field, allowed in values.items():
        if getattr(cfg, field) not in allowed:
            raise Inexpressible(
                f"{what} has no {field} {literal(getattr(cfg, field))}, only {' or '.join(map(literal, allowed))}"
            )
    for field in ("img_size", "patch_size"):
        height, width = pair(getattr(cfg, field))
        if height != width and (what.endswith(("SamVisionModel", "Sam3ViTModel")) or field == "patch_size"):
            raise Inexpressible(f"{what} has no {field} {height}x{width}, only squares")


def _global(cfg: VitDetConfig) -> list[int]:
    return [block for block in range(cfg.depth) if cfg.is_global(block)]


def _pretrained(cfg: VitDetConfig, what: str, *, resize: str) -> int:
    """Return the image side of the positions' grid, a square, which the class resizes in one way."""
    patch = pair(cfg.patch_size)
    grid = (
        pair(cfg.pos_grid)
        if cfg.pos_grid is not None
        else tuple(a // b for a, b in zip(pair(cfg.img_size), patch, strict=True))
    )
    if grid[0] != grid[1]:
        raise Inexpressible(f"transformers' {what} has no positions of {grid[0]}x{grid[1]} patches, only squares")
    side = grid[0] * patch[0]
    if cfg.pos_resize != resize and pair(cfg.img_size) != (side, side):
        raise Inexpressible(f'transformers\' {what} has no pos_resize "{cfg.pos_resize}", only "{resize}"')
    return side


def _sam(cfg: VitDetConfig) -> dict[str, Any]:
    values: dict[str, tuple[Any, ...]] = {"relative": ("decomposed", "none"), "pre_norm": (False,), "residual_blocks": ((),)}
    _require(cfg, "SamVisionModel", **values, pos_grid=(None,))
    return {
        "model_type": "sam_vision_model",
        "output_channels": cfg.neck_channels,
        "mlp_ratio": cfg.mlp_ratio,
        "mlp_dim": round(cfg.embed_dim * cfg.mlp_ratio),
        "qkv_bias": cfg.qkv_bias,
        "use_abs_pos": cfg.pos_embed == "learn",
        "use_rel_pos": cfg.relative == "decomposed",
        "global_attn_indexes": _global(cfg),
    }


def _vitdet(cfg: VitDetConfig) -> dict[str, Any]:
    _require(cfg, "VitDetModel", relative=("decomposed", "none"), pre_norm=(False,), neck=("none",))
    if cfg.mlp_ratio != int(cfg.mlp_ratio):
        raise Inexpressible(f"transformers' VitDetModel has no mlp_ratio {cfg.mlp_ratio}, only whole numbers")
    return {
        "model_type": "vitdet",
        "mlp_ratio": int(cfg.mlp_ratio),
        "qkv_bias": cfg.qkv_bias,
        "use_absolute_position_embeddings": cfg.pos_embed == "learn",
        "use_relative_position_embeddings": cfg.relative == "decomposed",
        **({"pretrain_image_size": _pretrained(cfg, "VitDetModel", resize="cubic")} if cfg.pos_embed == "learn" else {}),
        "window_block_indices": [block for block in range(cfg.depth) if not cfg.is_global(block)],
        "residual_block_indices": list(cfg.residual_blocks),
    }


def _sam3(cfg: VitDetConfig) -> dict[str, Any]:
    values: dict[str, tuple[Any, ...]] = {"neck": ("none",), "pre_norm": (True,), "residual_blocks": ((),)}
    _require(cfg, "Sam3ViTModel", **values, pos_embed=("learn",), qkv_bias=(True,))
    return {
        "model_type": "sam3_vit_model",
        "intermediate_size": round(cfg.embed_dim * cfg.mlp_ratio),
        "pretrain_image_size": _pretrained(cfg, "Sam3ViTModel", resize="tile"),
        "global_attn_indexes": _global(cfg),
        "rope_parameters": {"rope_type": "axial", "rope_theta": _THETA},
    }

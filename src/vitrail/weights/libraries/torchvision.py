"""torchvision's VisionTransformer: state dicts of `vit_b_16` to `vit_h_14`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.models import Swin, SwinV2, ViT
from vitrail.models.backbone import Backbone
from vitrail.models.swin_v2 import log_offsets
from vitrail.models.windows import relative_index
from vitrail.settings import ViTConfig, pair
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.weights.eval_transform import IMAGENET, DefaultTransform
from vitrail.weights.library import Export, FamilyLayout, Layout, Library, Writer
from vitrail.weights.names import Form, key_table
from vitrail.weights.targets import (
    ANY,
    Class,
    Inexpressible,
    check,
    cpu_state,
    rename,
    rename_family,
    require_head,
    with_token_rows,
    with_zeros,
)

BLOCK = "encoder.layers.encoder_layer_#"
VIT_LAYOUT = Layout(
    name="torchvision",
    anchor="conv_proj.weight",
    table=key_table(
        [
            ("cls_token", "class_token"),
            ("pos_embed", "encoder.pos_embedding"),
            ("patch_embed.proj.*", "conv_proj.*"),
            ("blocks.#.norm1.*", f"{BLOCK}.ln_1.*"),
            ("blocks.#.attn.qkv.weight", f"{BLOCK}.self_attention.in_proj_weight"),
            ("blocks.#.attn.qkv.bias", f"{BLOCK}.self_attention.in_proj_bias"),
            ("blocks.#.attn.proj.*", f"{BLOCK}.self_attention.out_proj.*"),
            ("blocks.#.norm2.*", f"{BLOCK}.ln_2.*"),
            ("blocks.#.mlp.fc1.*", f"{BLOCK}.mlp.0.*"),
            ("blocks.#.mlp.fc1.*", f"{BLOCK}.mlp.linear_1.*"),  # of older versions
            ("blocks.#.mlp.fc2.*", f"{BLOCK}.mlp.3.*"),
            ("blocks.#.mlp.fc2.*", f"{BLOCK}.mlp.linear_2.*"),
            ("norm.*", "encoder.ln.*"),
            ("pre_logits.fc.*", "heads.pre_logits.*"),
            ("head.*", "heads.head.*"),
        ]
    ),
    class_row=True,
)

VIT = Class(
    "torchvision's VisionTransformer",
    {"qkv_bias": ANY, "pos_embed": ANY, "no_embed_class": ANY, "head": ANY},
    square=("img_size", "patch_size"),
)


def plan(model: ViT) -> Export:
    """Export a state dict and the arguments of VisionTransformer. Raises Inexpressible for a model that it can't be."""
    cfg = model.config
    check(cfg, VIT)
    require_head(cfg, VIT)
    if cfg.in_channels != 3:
        raise Inexpressible(f"{VIT.name} has no in_channels {cfg.in_channels}, only 3")
    args: dict[str, Any] = {
        "image_size": pair(cfg.img_size)[0],
        "patch_size": pair(cfg.patch_size)[0],
        "num_layers": cfg.depth,
        "num_heads": cfg.num_heads,
        "hidden_dim": cfg.embed_dim,
        "mlp_dim": round(cfg.embed_dim * cfg.mlp_ratio),
        "num_classes": cfg.num_classes,
        **({"representation_size": cfg.embed_dim} if cfg.head == "mlp" else {}),
    }
    return Export(
        "torchvision",
        f"torchvision.models.VisionTransformer({', '.join(f'{name}={value}' for name, value in args.items())})",
        tensors=rename(with_zeros(*with_token_rows(cpu_state(model), cfg, present=True)), cfg, VIT_LAYOUT),
        beside=arguments_file(model, args),
    )


def arguments_file(model: Backbone, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the .json beside the weights: arguments of the class, preprocessing and class names."""
    images = {} if model.preprocessing is None else {"preprocessing": dataclasses.asdict(model.preprocessing)}
    labels = {"label_names": list(model.classes), "multi_label": model.multi_label}
    return {".json": {"arguments": args, **images, **labels}}


# --------------------------------------------------------------------------------------------------------------------
# Swin Transformer


def swin_names(name: str) -> tuple[str, ...]:
    """Return torchvision's name: stages and patch mergings alternate in one list."""
    if merging := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"features.{2 * int(merging[1])}.{merging[2]}",)
    if block := re.fullmatch(r"layers\.(\d+)\.blocks\.(.*)", name):
        rest = block[2].replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
        return (f"features.{2 * int(block[1]) + 1}.{rest}",)
    name = name.replace("patch_embed.proj.", "features.0.0.").replace("patch_embed.norm.", "features.0.2.")
    return (name.replace("head.fc.", "head."),)


SWIN_LAYOUT = FamilyLayout(
    SwinConfig,
    "torchvision",
    shows=("layers.0.blocks.0.attn.relative_position_bias_table", "layers.1.downsample.reduction.weight"),
    names=swin_names,
    ignored=r"relative_position_index$",
)


def swin_arguments(cfg: SwinConfig, window: int) -> dict[str, Any]:
    """Return the arguments of SwinTransformer."""
    return {
        "patch_size": [cfg.patch_size] * 2,
        "embed_dim": cfg.embed_dim,
        "depths": list(cfg.depths),
        "num_heads": list(cfg.num_heads),
        "window_size": [window] * 2,
        "mlp_ratio": cfg.mlp_ratio,
        "num_classes": cfg.num_classes,
    }


def swin_plan(model: Swin) -> Export:
    """Export a state dict and the arguments of SwinTransformer. Raises Inexpressible for a model that it can't be."""
    cfg = model.config
    if cfg.window_sizes:
        raise Inexpressible(f"torchvision's SwinTransformer has no window_sizes {cfg.window_sizes}, only one for all stages")
    if cfg.in_channels != 3 or not cfg.num_classes:
        raise Inexpressible(f"torchvision's SwinTransformer has no in_channels {cfg.in_channels} or num_classes 0")
    args = swin_arguments(cfg, cfg.window_size)
    state = rename_family(model, SWIN_LAYOUT)
    indexes = {  # buffers that a strict load requires
        name.replace("bias_table", "index"): relative_index(cfg.window_size).flatten()
        for name in state
        if name.endswith("relative_position_bias_table")
    }
    return Export(
        "torchvision",
        f"torchvision.models.SwinTransformer({', '.join(f'{name}={value}' for name, value in args.items())})",
        tensors=state | indexes,
        beside=arguments_file(model, args),
    )


def swin_v2_names(name: str) -> tuple[str, ...]:
    """Return torchvision's name: as version 1, with the biases of queries and values in one of all three."""
    return swin_names(re.sub(r"[qv]_bias$", "qkv.bias", name))


def swin_v2_form(name: str) -> Form | None:
    """Return the parts of the one bias; torchvision takes that of keys for zero."""
    part = {"q_bias": 0, "v_bias": 2}.get(name.rpartition(".")[2])
    return None if part is None else Form(lambda parts: parts[0].chunk(3)[part], lambda x, cfg: [x])


SWIN_V2_LAYOUT = FamilyLayout(
    SwinV2Config,
    "torchvision",
    shows=("layers.0.blocks.0.attn.cpb_mlp.0.weight", "layers.1.downsample.reduction.weight"),
    names=swin_v2_names,
    form=swin_v2_form,
    ignored=r"relative_position_index$|relative_coords_table$",
)
SWIN_V2_PARTS = {"block": "SwinTransformerBlockV2", "downsample_layer": "PatchMergingV2"}
"""Classes of torchvision.models.swin_transformer that make its SwinTransformer version 2."""


def swin_v2_plan(model: SwinV2) -> Export:
    """Export the same for version 2. Raises Inexpressible for what torchvision's class can't be."""
    cfg, what = model.config, "torchvision's SwinTransformer"
    lacks = {
        f"in_channels {cfg.in_channels}": cfg.in_channels != 3,
        "num_classes 0": not cfg.num_classes,
        "qkv_bias False": not cfg.qkv_bias,
        f"norm_eps {cfg.norm_eps:g}": cfg.norm_eps != SwinV2Config.norm_eps,
        f"window_sizes {cfg.window_sizes}": len({cfg.window(stage) for stage in range(len(cfg.depths))}) > 1,
        f"pretrained_window_sizes {cfg.pretrained_window_sizes}": any(
            cfg.pretrained_window(stage) != cfg.window(stage) for stage in range(len(cfg.depths))
        ),
    }
    if missing := [field for field, wrong in lacks.items() if wrong]:
        raise Inexpressible(f"{what} has no {missing[0]}")
    window, state = cfg.window(0), dict[str, Tensor]()
    args = swin_arguments(cfg, window)
    weights = cpu_state(model)
    for name, value in weights.items():
        if name.endswith("q_bias"):
            value = torch.cat([value, torch.zeros_like(value), weights[name.replace("q_bias", "v_bias")]])
        if not name.endswith("v_bias"):
            state[swin_v2_names(name)[0]] = value
        if name.endswith("logit_scale"):  # buffers that a strict load requires
            attn = swin_v2_names(name)[0].removesuffix("logit_scale")
            state[f"{attn}relative_position_index"] = relative_index(window).flatten()
            table = log_offsets(window, unit=window).unflatten(0, (2 * window - 1, -1))[None]
            state[f"{attn}relative_coords_table"] = table
    listed = [f"{name}={value}" for name, value in {**args, **SWIN_V2_PARTS}.items()]
    return Export(
        "torchvision",
        f"torchvision.models.SwinTransformer({', '.join(listed)})",
        tensors=state,
        beside={".json": {**arguments_file(model, args)[".json"], "parts": SWIN_V2_PARTS}},
    )


TORCHVISION = Library(
    layouts=(VIT_LAYOUT,),
    family_layouts=(SWIN_LAYOUT, SWIN_V2_LAYOUT),
    default_transforms=(
        # IMAGENET1K_V1 (L/16 alone resizes to 242), and SWAG at 384, 512 and 518 px
        DefaultTransform(
            "torchvision", "torchvision's checkpoints", IMAGENET, 0.875, "center", "bilinear", above_224=(1.0, "bicubic")
        ),
    ),
    writer=Writer(
        "torchvision",
        {ViTConfig: plan, SwinConfig: swin_plan, SwinV2Config: swin_v2_plan},
        suffixes=(".pth", ".pt", ".safetensors"),
        beside=(".json",),
    ),
)

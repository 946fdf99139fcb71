"""Our models as classes of transformers: names, config.json and preprocessor_config.json for from_pretrained."""

# D width · K classes

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.models import ViT
from vitrail.settings import Pair, Preprocessing, ViTConfig, pair
from vitrail.weights.libraries.transformers.config import PROCESSORS
from vitrail.weights.libraries.transformers.names import (
    CLIP_LAYOUT,
    DINOV2_BLOCKS,
    SIGLIP_LAYOUT,
    SWIGLU,
    VIT_BLOCKS,
    VIT_LAYOUT,
    Spelling,
)
from vitrail.weights.library import Export, Layout
from vitrail.weights.names import key_table
from vitrail.weights.targets import (
    ANY,
    GELUS,
    Class,
    Inexpressible,
    State,
    check,
    cpu_state,
    preprocessing_of,
    rename,
    require_head,
    with_token_rows,
    with_zeros,
)

# --------------------------------------------------------------------------------------------------------------------
# Classes

_VALUES: dict[str, Collection[Any] | None] = {
    "mlp": GELUS,
    **dict.fromkeys(("qkv_bias", "norm_eps", "pos_embed", "no_embed_class"), ANY),
}
VIT = Class("transformers' ViT", _VALUES)
DEIT = Class("transformers' DeiT", {**_VALUES, "dist_token": (True,)})
BEIT = Class("transformers' BEiT", {**_VALUES, "fc_norm": (True,), "pool": ("avg",), "init_values": ANY}, square=("img_size",))
DINOV2 = Class(
    "transformers' DINOv2",
    {**_VALUES, "mlp": (*GELUS, "swiglu"), "init_values": ANY, "reg_tokens": ANY, "pool": ("cls", "avg", "cls+avg")},
    square=("img_size",),
)
CLIP_TOWER = Class("transformers' CLIP", {**_VALUES, "pre_norm": (True,)}, square=("img_size", "patch_size"))
CLIP_CLASSIFIER = Class(
    "transformers' CLIP for classification",
    {**CLIP_TOWER.values, "pool": ("avg",), "final_norm": (False,)},
    square=CLIP_TOWER.square,
)
SIGLIP = Class("transformers' SigLIP", {**_VALUES, "class_token": (False,), "pool": ("avg", "map")}, square=CLIP_TOWER.square)


class Target(NamedTuple):
    """A class of transformers, its config.json, and how its files spell the names of a layout."""

    cls: str
    config: dict[str, Any]
    layout: Layout
    prefix: str
    """Before the encoder's names."""
    spelling: Spelling
    processor: str
    """Kind of image processor that its models come with."""
    drops: str = r"(?!)"
    """Pattern of names that it has no place for, and whose absence changes nothing."""
    notes: tuple[str, ...] = ()


def target_for(cfg: ViTConfig, classes: tuple[str, ...] = (), *, multi_label: bool = False) -> Target:
    """Return the class that can be this model, with the loss of its labels. Raises Inexpressible if there is none."""
    if cfg.dist_token:
        target = deit(cfg)
    elif cfg.pre_norm:
        target = clip(cfg)
    elif not cfg.class_token:
        target = siglip(cfg)
    elif cfg.fc_norm:
        target = beit(cfg)
    elif cfg.init_values is None and not cfg.reg_tokens and cfg.mlp != "swiglu" and cfg.pool == "cls":
        check(cfg, VIT)
        config = encoder_config(cfg, "vit", qkv_bias=cfg.qkv_bias)
        target = Target("ViTForImageClassification", config, VIT_LAYOUT, "vit.", VIT_BLOCKS, "ViT")
    else:
        target = dinov2(cfg)
    labels = label_config(classes, num_classes=cfg.num_classes, multi_label=multi_label)
    config = {"architectures": [target.cls], **target.config, **labels, "torch_dtype": "float32"}
    return target._replace(config=config)


def label_config(classes: tuple[str, ...], *, num_classes: int, multi_label: bool) -> dict[str, Any]:
    """Return the part of config.json that names the classes, and the loss of their labels."""
    names = classes or tuple(f"LABEL_{i}" for i in range(num_classes))
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **({"problem_type": "multi_label_classification"} if multi_label and num_classes else {}),
    }


def encoder_config(cfg: ViTConfig, kind: str, **more: Any) -> dict[str, Any]:
    """Return the part of config.json that all image encoders have."""
    return {
        "model_type": kind,
        "hidden_size": cfg.embed_dim,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": round(cfg.embed_dim * cfg.mlp_ratio),
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh", "swiglu": "silu"}.get(cfg.mlp, cfg.mlp),
        "layer_norm_eps": cfg.norm_eps,
        "image_size": sides(cfg.img_size),
        "patch_size": sides(cfg.patch_size),
        "num_channels": cfg.in_channels,
        **more,
    }


def sides(value: int | Pair) -> int | list[int]:
    """Return one side if both are the same, else [height, width]."""
    height, width = pair(value)
    return height if height == width else [height, width]


def with_head(layout: Layout, name: str) -> Layout:
    """Return the layout of a class that calls its head otherwise."""
    return dataclasses.replace(layout, table=(*key_table([("head.*", f"{name}.*")]), *layout.table))


def deit(cfg: ViTConfig) -> Target:
    """Return DeiT with both heads."""
    check(cfg, DEIT)
    config = encoder_config(cfg, "deit", qkv_bias=cfg.qkv_bias)
    layout = with_head(VIT_LAYOUT, "cls_classifier")
    return Target("DeiTForImageClassificationWithTeacher", config, layout, "deit.", VIT_BLOCKS, "DeiT")


def clip(cfg: ViTConfig) -> Target:
    """Return a class of CLIP: its tower, with a projection, or with a classifier of the mean."""
    vision = encoder_config(cfg, "clip_vision_model")
    if cfg.pool == "avg":
        check(cfg, CLIP_CLASSIFIER)
        require_head(cfg, CLIP_CLASSIFIER)
        config: dict[str, Any] = {"model_type": "clip", "vision_config": vision}
        return Target("CLIPForImageClassification", config, with_head(CLIP_LAYOUT, "classifier"), "vision_model.", {}, "CLIP")
    check(cfg, CLIP_TOWER)
    cls = "CLIPVisionModelWithProjection" if cfg.num_classes else "CLIPVisionModel"
    projected = {**vision, "projection_dim": cfg.num_classes or 512}
    return Target(cls, projected, CLIP_LAYOUT, "vision_model.", {}, "CLIP", drops=r"classifier\.bias")


def siglip(cfg: ViTConfig) -> Target:
    """Return a class of SigLIP: its tower, or a classifier of the mean."""
    check(cfg, SIGLIP)
    parts = (SIGLIP_LAYOUT, "vision_model.", dict[str, str](), "Siglip")
    vision = encoder_config(cfg, "siglip_vision_model", vision_use_head=cfg.pool == "map")
    if cfg.pool == "map" and cfg.num_classes:
        raise Inexpressible(f'{SIGLIP.name} has no num_classes {cfg.num_classes} with pool "map", only 0')
    if cfg.num_classes:
        return Target("SiglipForImageClassification", {"model_type": "siglip", "vision_config": vision}, *parts)
    note = "SiglipVisionModel does not average: take the mean of its last_hidden_state"
    return Target("SiglipVisionModel", vision, *parts, notes=() if cfg.pool == "map" else (note,))


def beit(cfg: ViTConfig) -> Target:
    """Return BEiT with absolute positions."""
    check(cfg, BEIT)
    config = encoder_config(
        cfg,
        "beit",
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.0 if cfg.init_values is None else max(cfg.init_values, 1e-6),
    )
    # BEiT's keys have no bias: it moves a query's scores of all keys by the same, which softmax ignores
    parts = (VIT_LAYOUT, "beit.", VIT_BLOCKS, "ViT")
    return Target("BeitForImageClassification", config, *parts, drops=r".*\.key\.bias")


def dinov2(cfg: ViTConfig) -> Target:
    """Return DINOv2, with registers or without, with a head or without."""
    check(cfg, DINOV2)
    kind, name = ("dinov2_with_registers", "Dinov2WithRegisters") if cfg.reg_tokens else ("dinov2", "Dinov2")
    gated, headed = cfg.mlp == "swiglu", cfg.num_classes > 0 or cfg.pool == "cls+avg"
    config = encoder_config(cfg, kind, qkv_bias=cfg.qkv_bias, use_swiglu_ffn=gated)
    hidden = config.pop("intermediate_size")
    widths = {(int(cfg.embed_dim * r * 2 / 3) + 7) // 8 * 8 if gated else cfg.embed_dim * r: r for r in range(32, 0, -1)}
    if hidden not in widths:  # its ratio is a whole number, of which SwiGLU takes two thirds
        near = ", ".join(map(str, sorted(sorted(widths, key=lambda width: abs(width - hidden))[:2])))
        raise Inexpressible(f"{DINOV2.name} has no MLP of {hidden} hidden features at width {cfg.embed_dim}, only {near}, …")
    config["mlp_ratio"] = widths[hidden]
    config["layerscale_value"] = 1.0 if cfg.init_values is None else cfg.init_values
    if cfg.reg_tokens:
        config["num_register_tokens"] = cfg.reg_tokens
    notes = ["transformers has this model only with LayerScale, which is written as ones"] if cfg.init_values is None else []
    if headed and cfg.reg_tokens and cfg.pool != "cls":
        notes.append("transformers 4 averages over the registers too: open it with version 5")
    if not headed and cfg.pool == "avg":
        notes.append(f"{name}Model does not average: take the mean over the patches in its last_hidden_state")
    cls = f"{name}{'ForImageClassification' if headed else 'Model'}"
    prefix, spelling = f"{kind}." if headed else "", {**DINOV2_BLOCKS, **(SWIGLU if gated else {})}
    return Target(cls, config, VIT_LAYOUT, prefix, spelling, "Bit", notes=tuple(notes))


# --------------------------------------------------------------------------------------------------------------------
# Files


def plan(model: ViT) -> Export:
    """Export a folder for from_pretrained. Raises Inexpressible for a model that no class can be."""
    cfg, images = model.config, preprocessing_of(model)
    target = target_for(cfg, model.classes, multi_label=model.multi_label)
    state = target_state(cpu_state(model), cfg, target)
    tensors = rename(state, cfg, target.layout, target.prefix, target.spelling, target.drops)
    idle = {  # what transformers' classes have and these models don't use
        "Dinov2": {"embeddings.mask_token": torch.zeros(1, cfg.embed_dim)},
        "CLIPFor": {"post_layernorm.weight": torch.ones(cfg.embed_dim), "post_layernorm.bias": torch.zeros(cfg.embed_dim)},
    }
    for cls, more in idle.items():
        tensors |= {f"{target.prefix}{name}": value for name, value in more.items() if target.cls.startswith(cls)}
    notes = target.notes
    if images.crop_mode == "center" and images.img_size[0] != images.img_size[1]:
        notes += ("transformers resizes by the shorter side, so that its crop shows less of most images",)
    return Export(
        "hf",
        f'transformers.{target.cls}.from_pretrained("PATH")',
        tensors=tensors,
        beside={"config.json": target.config, "preprocessor_config.json": image_processor(images, target.processor)},
        notes=notes,
    )


def target_state(state: State, cfg: ViTConfig, target: Target) -> dict[str, Tensor]:
    """Return weights of the same model that the class has places for. Raises Inexpressible for a bias that it lacks."""
    state, cfg = with_token_rows(state, cfg, present=True)
    made = with_zeros(state, cfg, biases="qkv_bias" not in target.config)
    if target.cls == "CLIPVisionModelWithProjection" and made["head.bias"].any():
        raise Inexpressible(f"{CLIP_TOWER.name} has no head.bias, and this one is not zero")
    if target.cls.startswith("Dinov2"):
        for i in range(cfg.depth if cfg.init_values is None else 0):
            made |= {f"blocks.{i}.{name}.gamma": torch.ones(cfg.embed_dim) for name in ("ls1", "ls2")}
        if cfg.num_classes and cfg.pool != "cls+avg":  # its head takes the class token and the mean, concatenated
            halves = [made["head.weight"], torch.zeros_like(made["head.weight"])]
            made["head.weight"] = torch.cat(halves if cfg.pool == "cls" else halves[::-1], dim=1)  # (K, 2 D)
    return made


def image_processor(images: Preprocessing, kind: str) -> dict[str, Any]:
    """Return preprocessor_config.json: of the model's kind of processor, or of the first that computes the same."""
    resized = [math.floor(side / images.crop_pct) for side in images.img_size]
    crop = dict(zip(("height", "width"), images.img_size, strict=True))
    size: dict[str, int] = dict(zip(("height", "width"), resized, strict=True))
    if images.crop_mode == "center":
        kind, size = "CLIP" if kind == "CLIP" else "Bit", {"shortest_edge": max(resized)}
    elif resized != list(images.img_size):
        kind = "DeiT"
    elif kind != "Siglip":
        kind = "ViT"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": images.in_channels == 3,
        "do_resize": True,
        "size": size,
        "resample": {"bilinear": 2, "bicubic": 3}[images.interpolation],  # Pillow's numbers
        **({"do_center_crop": True, "crop_size": crop} if PROCESSORS[kind].crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }

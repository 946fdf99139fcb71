"""What other libraries can express: a model of ours as theirs, or one line that names what they lack.

Nothing here approximates. What a library has no setting for is refused, unless other weights of theirs say the same: a
position of zeros, a bias of zeros, LayerScale of ones, a position that is added to its token.
"""

# D width · M hidden width of the MLP · L patches · K classes

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vitrail.config import Preprocessing, ViTConfig, pair
from vitrail.models.backbone import Backbone
from vitrail.weights.origins import (
    BIG_VISION,
    GOOGLE,
    TORCHVISION,
    TRANSFORMERS,
    TRANSFORMERS_CLIP,
    TRANSFORMERS_SIGLIP,
    Origin,
)

State = Mapping[str, Tensor]
"""Tensors by our names."""
ANY = None
"""Of a field: every value of it."""
GELUS = ("gelu", "gelu_tanh", "quick_gelu")

SIZES = ("img_size", "patch_size", "in_channels", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
"""Fields that every library has."""


Target = Literal["timm", "hf", "torchvision", "npz"]
"""Libraries, and Google's layout, that a model is written for."""


class Inexpressible(ValueError):
    """A library has no setting for what a model has."""


@dataclass(frozen=True)
class Plan:
    """What is to be written."""

    to: Target
    opens: str
    """The line of Python that opens it, with PATH for where it is."""
    model: Backbone | None = None
    """For timm, which reads what we read."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By their names there: views of the model's own, wherever the layout allows it."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """JSON by the file's name, or by its suffix where the weights are one file."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """One class of another library: which of our models it can be."""

    name: str
    knows: Mapping[str, Collection[Any] | None] = field(default_factory=dict)
    """By field of ViTConfig: the values that it has a setting for. A field that is not here has its default."""
    square: tuple[str, ...] = ()
    """Fields whose two sides are the same there."""


def check(cfg: ViTConfig, peer: Peer) -> None:
    """Raises Inexpressible, in one line that names the field, for a model that the class can't be."""
    plain, cfg = ViTConfig(), normal(cfg)
    for f in dataclasses.fields(ViTConfig):
        value, known = getattr(cfg, f.name), peer.knows.get(f.name, (getattr(plain, f.name),))
        if f.name in SIZES or f.name.endswith("_rate") or known is ANY or value in known:
            continue
        way = "; load it with norm_eps=1e-06, which computes nearly the same" if f.name == "norm_eps" else ""
        raise Inexpressible(f"{peer.name} has no {f.name} {said(value)}, only {' or '.join(map(said, known))}{way}")
    for name in peer.square:
        height, width = pair(getattr(cfg, name))
        if height != width:
            raise Inexpressible(f"{peer.name} has no {name} {height}x{width}, only squares")


def said(value: Any) -> str:
    """A value as it is written in a message."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def normal(cfg: ViTConfig) -> ViTConfig:
    """The same model, without settings that change nothing in it."""
    changes: dict[str, Any] = {}
    if cfg.head_dim is not None and cfg.head_dim * cfg.num_heads == cfg.embed_dim:
        changes["head_dim"] = None
    if cfg.pool == "cls" or not (cfg.class_token or cfg.reg_tokens):
        changes["pool_include_prefix"] = False
    if not cfg.class_token:
        changes["no_embed_class"] = False
    return dataclasses.replace(cfg, **changes)


def ratio(hidden: int, dim: int) -> float:
    """The MLP ratio from which a library that rounds down makes this hidden width."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def sides(value: int | tuple[int, int]) -> int | list[int]:
    """One side where both are the same, else (height, width), as JSON has it."""
    height, width = pair(value)
    return height if height == width else [height, width]


# --------------------------------------------------------------------------------------------------------------------
# The same model in other weights


def placed(state: State, cfg: ViTConfig, *, tokens: bool) -> tuple[dict[str, Tensor], ViTConfig]:
    """The same model, whose class and distillation token have a row in the position embedding, or else have none.

    A row that is added is zero; one that is taken out is added to its token.
    """
    made = dict(state)
    names = [name for name in ("cls_token", "dist_token") if name in state]
    if not names or cfg.no_embed_class is not tokens:
        return made, cfg
    if "pos_embed" in made and tokens:
        zeros = made["pos_embed"].new_zeros(1, len(names), cfg.embed_dim)
        made["pos_embed"] = torch.cat([zeros, made["pos_embed"]], dim=1)
    elif "pos_embed" in made:
        for row, name in enumerate(names):
            made[name] = made[name] + made["pos_embed"][:, row : row + 1]
        made["pos_embed"] = made["pos_embed"][:, len(names) :].contiguous()
    return made, dataclasses.replace(cfg, no_embed_class=not tokens)


def filled(state: State, cfg: ViTConfig, *, biases: bool = True) -> dict[str, Tensor]:
    """With zeros for what some libraries can't leave out: positions and, with `biases`, those of query, key and value."""
    made, like = dict(state), state["patch_embed.proj.weight"]
    if "pos_embed" not in made:
        (height, width), patch = pair(cfg.img_size), pair(cfg.patch_size)
        front = 0 if cfg.no_embed_class else cfg.class_token + cfg.dist_token
        made["pos_embed"] = like.new_zeros(1, front + height // patch[0] * (width // patch[1]), cfg.embed_dim)
    if biases and not cfg.qkv_bias:
        made |= {f"blocks.{i}.attn.qkv.bias": like.new_zeros(3 * cfg.embed_dim) for i in range(cfg.depth)}
    return made


# --------------------------------------------------------------------------------------------------------------------
# timm

_TIMM_PLACES: dict[str, Collection[Any] | None] = {
    "mlp": GELUS,
    "qkv_bias": ANY,
    "qk_norm": ANY,
    "init_values": ANY,
    "pre_norm": ANY,
    "final_norm": ANY,
    "no_embed_class": ANY,
}
TIMM = Peer(
    "timm's VisionTransformer",
    {
        **_TIMM_PLACES,
        "norm_eps": (1e-6, 1e-5),
        "fc_norm": ANY,
        "class_token": ANY,
        "reg_tokens": ANY,
        "pos_embed": ANY,
        "pool": ("cls", "avg", "map"),
        "pool_include_prefix": ANY,
    },
)
TIMM_SWIGLU = Peer(
    "timm's VisionTransformer with SwiGLU", {**TIMM.knows, "mlp": ("swiglu",), "norm_eps": (1e-6,), "pool": ("cls", "avg")}
)
TIMM_DISTILLED = Peer(
    "timm's VisionTransformerDistilled", {**_TIMM_PLACES, "dist_token": (True,), "pos_embed": ("learn", "sincos2d")}
)


def for_timm(cfg: ViTConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """The keys of config.json by which timm's `create_model("local-dir:FOLDER")` opens the weights of `timm_form`.

    SwiGLU, epsilon and distillation token are no arguments that JSON can hold: an architecture is named that has them.
    Raises Inexpressible for what timm lacks.
    """
    dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
    peer = TIMM_DISTILLED if cfg.dist_token else TIMM_SWIGLU if cfg.mlp == "swiglu" else TIMM
    check(cfg, peer)
    if cfg.pos_embed == "none" and (cfg.class_token or cfg.reg_tokens):
        raise Inexpressible(
            f'{peer.name} has no pos_embed "none" with a class token or registers, which old versions then drop'
        )
    args: dict[str, Any] = {
        "img_size": cfg.img_size,
        "patch_size": cfg.patch_size,
        "in_chans": cfg.in_channels,
        "embed_dim": dim,
        "depth": cfg.depth,
        "num_heads": cfg.num_heads,
        "mlp_ratio": ratio(2 * hidden if cfg.mlp == "swiglu" else hidden, dim),
        "qkv_bias": cfg.qkv_bias,
        "qk_norm": cfg.qk_norm,
        "init_values": cfg.init_values,
        "pre_norm": cfg.pre_norm,
        "final_norm": cfg.final_norm,
    }
    if peer is TIMM_DISTILLED:
        architecture = "deit_base_distilled_patch16_224"
    else:
        small_eps = "vit_giant_patch14_dinov2" if peer is TIMM_SWIGLU else "vit_base_patch16_224"
        architecture = small_eps if cfg.norm_eps == 1e-6 else "vit_base_patch16_clip_224"
        args |= {
            "fc_norm": cfg.fc_norm,
            "class_token": cfg.class_token,
            "reg_tokens": cfg.reg_tokens,
            "no_embed_class": cfg.no_embed_class or cfg.reg_tokens > 0,  # without it timm's registers have positions
            "global_pool": "token" if cfg.pool == "cls" else cfg.pool,
        }
    if cfg.mlp in ("gelu_tanh", "quick_gelu"):
        args["act_layer"] = cfg.mlp
    if cfg.pos_embed == "none":
        args["pos_embed"] = "none"
    if normal(cfg).pool_include_prefix:
        args["pool_include_prefix"] = True
    return {
        "architecture": architecture,
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [cfg.in_channels, *images.img_size],
            "fixed_input_size": True,
            "mean": images.mean,
            "std": images.std,
            "crop_pct": images.crop_pct,
            "crop_mode": images.crop_mode,
            "interpolation": images.interpolation,
            "num_classes": cfg.num_classes,
            # with other channels, timm before 1.0.27 would throw the stem away instead of taking it as it is
            **({"first_conv": "patch_embed.proj"} if cfg.in_channels in (1, 3) else {}),
            "classifier": ["head", "head_dist"] if cfg.dist_token else "head",
            **({"license": licence} if licence else {}),
        },
    }


def timm_form(state: State, cfg: ViTConfig) -> tuple[dict[str, Tensor], ViTConfig]:
    """The same model in weights that both we and timm read: timm places the tokens before the patches all or none."""
    if cfg.dist_token:
        return placed(state, cfg, tokens=True)
    return placed(state, cfg, tokens=False) if cfg.reg_tokens else (dict(state), cfg)


# --------------------------------------------------------------------------------------------------------------------
# transformers

_EVERYWHERE: dict[str, Collection[Any] | None] = {
    "mlp": GELUS,
    "qkv_bias": ANY,
    "norm_eps": ANY,
    "pos_embed": ANY,
    "no_embed_class": ANY,
}
HF_VIT = Peer("transformers' ViT", _EVERYWHERE)
HF_DEIT = Peer("transformers' DeiT", {**_EVERYWHERE, "dist_token": (True,)})
HF_BEIT = Peer(
    "transformers' BEiT",
    {**_EVERYWHERE, "fc_norm": (True,), "pool": ("avg",), "init_values": ANY},
    square=("img_size",),
)
HF_DINOV2 = Peer(
    "transformers' DINOv2",
    {**_EVERYWHERE, "mlp": (*GELUS, "swiglu"), "init_values": ANY, "reg_tokens": ANY, "pool": ("cls", "avg", "cls+avg")},
    square=("img_size",),
)
HF_CLIP = Peer("transformers' CLIP", {**_EVERYWHERE, "pre_norm": (True,)}, square=("img_size", "patch_size"))
HF_CLIP_CLASSIFIER = Peer(
    "transformers' CLIP for classification",
    {**_EVERYWHERE, "pre_norm": (True,), "pool": ("avg",), "final_norm": (False,)},
    square=("img_size", "patch_size"),
)
HF_SIGLIP = Peer(
    "transformers' SigLIP",
    {**_EVERYWHERE, "class_token": (False,), "pool": ("avg", "map")},
    square=("img_size", "patch_size"),
)

Spelling = tuple[tuple[str, str], ...]
# What transformers writes into files, of any version, for the names in its code of today, which our tables have
_BLOCKS: Spelling = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
)
_VIT_BLOCKS: Spelling = (*_BLOCKS, (r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense."))
_DINOV2_BLOCKS: Spelling = (
    *_BLOCKS,
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".layer_scale\1.lambda1"),
)
_DINOV2_SWIGLU: Spelling = ((r"\.mlp\.fc1\.", ".mlp.weights_in."), (r"\.mlp\.fc2\.", ".mlp.weights_out."))


class HuggingFace(NamedTuple):
    """A class of transformers, its config.json, and how its files spell the names of our table."""

    cls: str
    config: dict[str, Any]
    origin: Origin
    prefix: str
    """Before the encoder's names."""
    spelling: Spelling
    processor: str
    """The kind of image processor that its models come with."""
    drops: str = r"(?!)"
    """Pattern of names that it has no place for, and whose absence changes nothing."""
    notes: tuple[str, ...] = ()


def for_transformers(cfg: ViTConfig, classes: tuple[str, ...] = (), *, multi_label: bool = False) -> HuggingFace:
    """The class of transformers that can be this model, with the loss of its labels. Raises Inexpressible where none can."""
    if cfg.dist_token:
        found = _deit(cfg)
    elif cfg.pre_norm:
        found = _clip(cfg)
    elif not cfg.class_token:
        found = _siglip(cfg)
    elif cfg.fc_norm:
        found = _beit(cfg)
    elif cfg.init_values is None and not cfg.reg_tokens and cfg.mlp != "swiglu" and cfg.pool == "cls":
        check(cfg, HF_VIT)
        config = _encoder(cfg, "vit", qkv_bias=cfg.qkv_bias)
        found = HuggingFace("ViTForImageClassification", config, TRANSFORMERS, "vit.", _VIT_BLOCKS, "ViT")
    else:
        found = _dinov2(cfg)
    labels = labels_of(classes, num_classes=cfg.num_classes, multi_label=multi_label)
    config = {"architectures": [found.cls], **found.config, **labels, "torch_dtype": "float32"}
    return found._replace(config=config)


def labels_of(classes: tuple[str, ...], *, num_classes: int, multi_label: bool) -> dict[str, Any]:
    """The keys of a config.json that name the classes, and the loss of their labels."""
    names = classes or tuple(f"LABEL_{i}" for i in range(num_classes))
    problem = {"problem_type": "multi_label_classification"} if multi_label and num_classes else {}
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **problem,
    }


def _encoder(cfg: ViTConfig, kind: str, **more: Any) -> dict[str, Any]:
    """The part of a config.json that all image encoders share."""
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


def _deit(cfg: ViTConfig) -> HuggingFace:
    check(cfg, HF_DEIT)
    spelling = (*_VIT_BLOCKS, (r"^classifier\.", "cls_classifier."))
    config = _encoder(cfg, "deit", qkv_bias=cfg.qkv_bias)
    return HuggingFace("DeiTForImageClassificationWithTeacher", config, TRANSFORMERS, "deit.", spelling, "DeiT")


def _clip(cfg: ViTConfig) -> HuggingFace:
    parts = (TRANSFORMERS_CLIP, "vision_model.")
    vision = _encoder(cfg, "clip_vision_model")
    if cfg.pool == "avg":
        check(cfg, HF_CLIP_CLASSIFIER)
        need_head(cfg, HF_CLIP_CLASSIFIER)
        config: dict[str, Any] = {"model_type": "clip", "vision_config": vision}
        spelling = ((r"^visual_projection\.", "classifier."),)
        return HuggingFace("CLIPForImageClassification", config, *parts, spelling, "CLIP")
    check(cfg, HF_CLIP)
    cls = "CLIPVisionModelWithProjection" if cfg.num_classes else "CLIPVisionModel"
    projected = {**vision, "projection_dim": cfg.num_classes or 512}
    return HuggingFace(cls, projected, *parts, (), "CLIP", drops=r"classifier\.bias")


def _siglip(cfg: ViTConfig) -> HuggingFace:
    check(cfg, HF_SIGLIP)
    parts = (TRANSFORMERS_SIGLIP, "vision_model.", (), "Siglip")
    vision = _encoder(cfg, "siglip_vision_model", vision_use_head=cfg.pool == "map")
    if cfg.pool == "map" and cfg.num_classes:
        raise Inexpressible(f'{HF_SIGLIP.name} has no num_classes {cfg.num_classes} with pool "map", only 0')
    if cfg.num_classes:
        return HuggingFace("SiglipForImageClassification", {"model_type": "siglip", "vision_config": vision}, *parts)
    note = "SiglipVisionModel does not average: take the mean of its last_hidden_state"
    return HuggingFace("SiglipVisionModel", vision, *parts, notes=() if cfg.pool == "map" else (note,))


def _beit(cfg: ViTConfig) -> HuggingFace:
    check(cfg, HF_BEIT)
    config = _encoder(
        cfg,
        "beit",
        use_absolute_position_embeddings=True,
        use_mean_pooling=True,
        layer_scale_init_value=0.0 if cfg.init_values is None else max(cfg.init_values, 1e-6),
    )
    # BEiT's keys have no bias: it moves a query's scores of all keys by the same, which softmax does not see
    parts = (TRANSFORMERS, "beit.", _VIT_BLOCKS, "ViT")
    return HuggingFace("BeitForImageClassification", config, *parts, drops=r".*\.key\.bias")


def _dinov2(cfg: ViTConfig) -> HuggingFace:
    check(cfg, HF_DINOV2)
    kind, name = ("dinov2_with_registers", "Dinov2WithRegisters") if cfg.reg_tokens else ("dinov2", "Dinov2")
    gated, headed = cfg.mlp == "swiglu", cfg.num_classes > 0 or cfg.pool == "cls+avg"
    config = _encoder(cfg, kind, qkv_bias=cfg.qkv_bias, use_swiglu_ffn=gated)
    hidden = config.pop("intermediate_size")
    widths = {(int(cfg.embed_dim * r * 2 / 3) + 7) // 8 * 8 if gated else cfg.embed_dim * r: r for r in range(32, 0, -1)}
    if hidden not in widths:  # its ratio is a whole number, of which SwiGLU takes two thirds
        near = ", ".join(map(str, sorted(sorted(widths, key=lambda width: abs(width - hidden))[:2])))
        raise Inexpressible(f"{HF_DINOV2.name} has no MLP of {hidden} hidden features at width {cfg.embed_dim}, only {near}, …")
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
    prefix, spelling = f"{kind}." if headed else "", (*_DINOV2_BLOCKS, *(_DINOV2_SWIGLU if gated else ()))
    return HuggingFace(cls, config, TRANSFORMERS, prefix, spelling, "Bit", notes=tuple(notes))


def need_head(cfg: ViTConfig, peer: Peer) -> None:
    """Raises Inexpressible for a model without a head."""
    if not cfg.num_classes:
        raise Inexpressible(f"{peer.name} has no num_classes 0, only a head; load the model with num_classes=…")


def transformers_form(state: State, cfg: ViTConfig, found: HuggingFace) -> dict[str, Tensor]:
    """The same model in weights that the class has places for. Raises Inexpressible for a bias that it has none for."""
    made, cfg = placed(state, cfg, tokens=True)
    made = filled(made, cfg, biases="qkv_bias" not in found.config)
    if found.cls == "CLIPVisionModelWithProjection" and made["head.bias"].any():
        raise Inexpressible(f"{HF_CLIP.name} has no head.bias, and this one is not zero")
    if found.cls.startswith("Dinov2"):
        for i in range(cfg.depth if cfg.init_values is None else 0):
            made |= {f"blocks.{i}.{name}.gamma": torch.ones(cfg.embed_dim) for name in ("ls1", "ls2")}
        if cfg.num_classes and cfg.pool != "cls+avg":  # its head sees the class token and the mean, side by side
            halves = [made["head.weight"], torch.zeros_like(made["head.weight"])]
            made["head.weight"] = torch.cat(halves if cfg.pool == "cls" else halves[::-1], dim=1)
    return made


def image_processor(images: Preprocessing, kind: str) -> dict[str, Any]:
    """preprocessor_config.json: of the model's own kind of processor, or of the first one that does what is asked for."""
    resized = [math.floor(side / images.crop_pct) for side in images.img_size]
    crop = dict(zip(("height", "width"), images.img_size, strict=True))
    size: dict[str, int] = dict(zip(("height", "width"), resized, strict=True))
    if images.crop_mode == "center":
        kind, size = "CLIP" if kind == "CLIP" else "Bit", {"shortest_edge": max(resized)}
    elif resized != list(images.img_size):
        kind = "DeiT"
    elif kind != "Siglip":
        kind = "ViT"
    cropped = kind in ("CLIP", "Bit", "DeiT")
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": images.in_channels == 3,
        "do_resize": True,
        "size": size,
        "resample": {"bilinear": 2, "bicubic": 3}[images.interpolation],  # Pillow's numbers
        **({"do_center_crop": True, "crop_size": crop} if cropped else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }


# --------------------------------------------------------------------------------------------------------------------
# torchvision

TORCHVISION_VIT = Peer(
    "torchvision's VisionTransformer",
    {"qkv_bias": ANY, "pos_embed": ANY, "no_embed_class": ANY, "head": ANY},
    square=("img_size", "patch_size"),
)


def for_torchvision(cfg: ViTConfig) -> tuple[Origin, dict[str, Any]]:
    """The arguments of torchvision's VisionTransformer. Raises Inexpressible for what it lacks."""
    check(cfg, TORCHVISION_VIT)
    need_head(cfg, TORCHVISION_VIT)
    if cfg.in_channels != 3:
        raise Inexpressible(f"{TORCHVISION_VIT.name} has no in_channels {cfg.in_channels}, only 3")
    args: dict[str, Any] = {
        "image_size": pair(cfg.img_size)[0],
        "patch_size": pair(cfg.patch_size)[0],
        "num_layers": cfg.depth,
        "num_heads": cfg.num_heads,
        "hidden_dim": cfg.embed_dim,
        "mlp_dim": round(cfg.embed_dim * cfg.mlp_ratio),
        "num_classes": cfg.num_classes,
    }
    if cfg.head == "mlp":
        args["representation_size"] = cfg.embed_dim
    return TORCHVISION, args


# --------------------------------------------------------------------------------------------------------------------
# Google's .npz

_FLAX: dict[str, Collection[Any] | None] = {"mlp": ("gelu", "gelu_tanh"), "qkv_bias": ANY, "pos_embed": ANY, "head": ANY}
GOOGLE_VIT = Peer("Google's vision_transformer", _FLAX)
BIG_VISION_TOKEN = Peer("big_vision's ViT with a class token", {**_FLAX, "no_embed_class": (True,)})
BIG_VISION_VIT = Peer("big_vision's ViT", {**_FLAX, "class_token": (False,), "pool": ("avg", "map")})


def for_google(cfg: ViTConfig) -> tuple[Origin, str]:
    """The layout of .npz that can hold this model, and what stands before its names. Raises Inexpressible where none can."""
    peer = BIG_VISION_VIT if not cfg.class_token else BIG_VISION_TOKEN if cfg.no_embed_class else GOOGLE_VIT
    check(cfg, peer)
    return (GOOGLE, "") if peer is GOOGLE_VIT else (BIG_VISION, "params/")

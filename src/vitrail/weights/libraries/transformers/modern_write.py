"""Modern ViTs as classes of transformers: DINOv3, AIMv2, V-JEPA 2's encoder, SigLIP 2's NaFlex."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.models.modern import ModernViT
from vitrail.settings import pair
from vitrail.settings.modern import ModernConfig
from vitrail.weights.libraries.transformers.modern import AIMV2_LAYOUT, DINOV3_LAYOUT
from vitrail.weights.libraries.transformers.towers import SIGLIP2_LAYOUT, VJEPA2_LAYOUT
from vitrail.weights.libraries.transformers.write import image_processor, label_config, sides
from vitrail.weights.library import Export
from vitrail.weights.targets import Inexpressible, cpu_state, literal, mlp_ratio, preprocessing_of, rename_family, same_names

_ACTIVATIONS = {"swiglu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu", "relu": "relu"}


class Target(NamedTuple):
    """A class of transformers, and the files that it opens."""

    cls: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    processor: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def modern_plan(model: ModernViT) -> Export:
    """Export a folder for from_pretrained. Raises Inexpressible for a model that none of the classes is."""
    target = _writer_of(model.config)(model)
    return Export(
        "hf",
        f'transformers.{target.cls}.from_pretrained("PATH")',
        tensors=target.tensors,
        beside={"config.json": target.config, "preprocessor_config.json": target.processor},
        notes=target.notes,
    )


def _writer_of(cfg: ModernConfig) -> Callable[[ModernViT], Target]:
    """Return the writer of the class that is nearest, by what only its models have."""
    if cfg.rope == "video":
        return _vjepa2
    if cfg.norm == "rms":
        return _aimv2
    return _siglip2 if cfg.rope == "none" and cfg.pos_embed == "learn" else _dinov3


def _require(cfg: ModernConfig, cls: str, values: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise Inexpressible for a field with none of the values that a class of transformers has."""
    common: dict[str, tuple[Any, ...]] = {
        "num_classes": (0,),
        "pos_grid": (None,),
        "pos_square": (False,),
        "rope_class": (False,),
        "norm_position": ("pre",),
        "layer_scale": ("both",),
        "qkv": ("fused",),
        "qk_norm": (False,),
        "kv_heads": (None,),
        "head_dim": (None,),
        "scale_attn_inner": (False,),
        "scale_mlp": (False,),
        "pre_norm": (False,),
        "patch_norm": (False,),
        "final_norm": (True,),
        "fc_norm": (False,),
        "dist_token": (False,),
        "head": ("linear",),
        "stem": ("patch",),
        "block": ("serial",),
        "attention": ("softmax",),
        "relative_bias": ("none",),
    }
    for name, allowed in {**common, **values}.items():
        if getattr(cfg, name) not in allowed:
            only = " or ".join(map(literal, allowed))
            raise Inexpressible(f"transformers' {cls} has no {name} {literal(getattr(cfg, name))}, only {only}")
    if cfg.mlp == "swiglu" and cfg.gate == "packed":
        raise Inexpressible(f'transformers\' {cls} has no gate "packed", only "split"')


def _mean_note(cls: str, tokens: str = "patches") -> str:
    return f"{cls} does not average: take the mean over the {tokens} in its last_hidden_state"


def _common_config(cfg: ModernConfig, cls: str, kind: str) -> dict[str, Any]:
    return {
        "architectures": [cls],
        "model_type": kind,
        "image_size": sides(cfg.img_size),
        "patch_size": sides(cfg.patch_size),
        "num_channels": cfg.in_channels,
        "hidden_size": cfg.embed_dim,
        "intermediate_size": round(cfg.embed_dim * cfg.mlp_ratio),
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "torch_dtype": "float32",
    }


# --------------------------------------------------------------------------------------------------------------------
# DINOv3, AIMv2


def _dinov3(model: ModernViT) -> Target:
    cls, cfg = "DINOv3ViTModel", model.config
    config = _dinov3_config(cfg, cls)
    tensors = rename_family(model, DINOV3_LAYOUT)
    tensors["embeddings.mask_token"] = torch.zeros(1, 1, cfg.embed_dim)
    return Target(cls, config, tensors, _image_processor(model), (_mean_note(cls),) if cfg.pool == "avg" else ())


def _dinov3_config(cfg: ModernConfig, cls: str) -> dict[str, Any]:
    fixed = {
        "rope": ("centred",),
        "rope_layout": ("half",),
        "rope_axes": ("yx",),
        "class_token": (True,),
        "pos_embed": ("none",),
    }
    _require(cfg, cls, {**fixed, "embed_norm": (False,), "pool": ("cls", "avg"), "mlp": ("swiglu", "gelu", "gelu_tanh")})
    if cfg.init_values is None:
        raise Inexpressible(f"transformers' {cls} has no init_values null, only LayerScale")
    if cfg.reg_tokens == 0:
        raise Inexpressible(f"transformers' {cls} has no reg_tokens 0 that its files hold")
    return {
        **_common_config(cfg, cls, "dinov3_vit"),
        "hidden_act": _ACTIVATIONS[cfg.mlp],
        "use_gated_mlp": cfg.mlp == "swiglu",
        "layer_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_temperature,
        "query_bias": cfg.qkv_bias,
        "key_bias": cfg.qkv_bias and cfg.key_bias,
        "value_bias": cfg.qkv_bias,
        **same_names(cfg, "proj_bias", "mlp_bias"),
        "num_register_tokens": cfg.reg_tokens,
        "layerscale_value": cfg.init_values,
        "pos_embed_shift": cfg.rope_shift,
        "pos_embed_jitter": cfg.rope_jitter,
        "pos_embed_rescale": cfg.rope_rescale,
    }


def _aimv2(model: ModernViT) -> Target:
    cls, cfg = "Aimv2VisionModel", model.config
    config = _aimv2_config(cfg, cls)
    tensors = rename_family(model, AIMV2_LAYOUT)
    if cfg.pos_embed == "sincos2d":
        del tensors["embeddings.position_embedding.weight"]  # computed there, too
    return Target(cls, config, tensors, _image_processor(model), (_mean_note(cls),) if cfg.pool == "avg" else ())


def _aimv2_config(cfg: ModernConfig, cls: str) -> dict[str, Any]:
    fixed = {
        "rope": ("none",),
        "class_token": (False,),
        "reg_tokens": (0,),
        "init_values": (None,),
        "pos_embed": ("learn", "sincos2d"),
    }
    _require(cfg, cls, {**fixed, "embed_norm": (True,), "mlp": ("swiglu",), "pool_block": (cfg.pool != "map",)})
    if cfg.qkv_bias != cfg.proj_bias or (cfg.qkv_bias and not cfg.key_bias):
        raise Inexpressible(f"transformers' {cls} has biases in all of its attention, or in none")
    if cfg.pos_embed == "learn" and len(set(pair(cfg.img_size))) == 2:
        raise Inexpressible(f"transformers' {cls} has no img_size {cfg.img_size}, only squares")
    return {
        **_common_config(cfg, cls, "aimv2_vision_model"),
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        **same_names(cfg, "qkv_bias", "mlp_bias"),
        "use_head": cfg.pool == "map",
        "is_native": cfg.pos_embed == "sincos2d",
    }


def _image_processor(model: ModernViT) -> dict[str, Any]:
    return image_processor(preprocessing_of(model), "ViT")


# --------------------------------------------------------------------------------------------------------------------
# V-JEPA 2, SigLIP 2

_GELUS = ("gelu", "gelu_tanh", "quick_gelu", "relu")
_TOWER: dict[str, tuple[Any, ...]] = {  # of both towers
    "norm": ("layer",),
    "class_token": (False,),
    "reg_tokens": (0,),
    "init_values": (None,),
    "embed_norm": (False,),
    "proj_bias": (True,),
    "mlp_bias": (True,),
    "mlp": _GELUS,
}


def _require_square(cls: str, **values: Any) -> None:
    """Raise Inexpressible for a value of two sides that are not the same."""
    for name, value in values.items():
        height, width = pair(value)
        if height != width:
            raise Inexpressible(f"transformers' {cls} has no {name} {height}x{width}, only squares")


def _vjepa2(model: ModernViT) -> Target:
    """Return V-JEPA 2's encoder: an image is a video of one frame, which its class shows twice."""
    cls, cfg = "VJEPA2Model", model.config
    rope = {"rope_layout": ("interleaved",), "rope_axes": ("yx",), "rope_temperature": (1e4,)}
    _require(cfg, cls, {**_TOWER, **rope, "pos_embed": ("none",), "pool": ("avg",)})
    _require_square(cls, img_size=cfg.img_size, patch_size=cfg.patch_size)
    if cfg.qkv_bias and not cfg.key_bias:
        raise Inexpressible(f"transformers' {cls} has no biases of queries and values only")
    config = {
        "architectures": [cls],
        "model_type": "vjepa2",
        "crop_size": sides(cfg.img_size),
        "patch_size": sides(cfg.patch_size),
        "tubelet_size": 2,
        "in_chans": cfg.in_channels,
        "hidden_size": cfg.embed_dim,
        "mlp_ratio": mlp_ratio(round(cfg.embed_dim * cfg.mlp_ratio), cfg.embed_dim),
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "hidden_act": _ACTIVATIONS[cfg.mlp],
        "layer_norm_eps": cfg.norm_eps,
        "qkv_bias": cfg.qkv_bias,
        "torch_dtype": "float32",
    }
    notes = (
        "the predictor is not written: transformers makes a new one, which skip_predictor=True leaves out",
        "both frames of the patch projection are half of their sum: the same for images, not for videos that move",
        _mean_note(cls, "tokens"),
    )
    return Target(cls, config, rename_family(model, VJEPA2_LAYOUT), _image_processor(model), notes)


def _siglip2(model: ModernViT) -> Target:
    """Return a class of SigLIP 2 with patches cut beforehand: its tower, or a classifier of the mean."""
    cfg = model.config
    cls = "Siglip2ForImageClassification" if cfg.num_classes else "Siglip2VisionModel"
    pools = ("avg",) if cfg.num_classes else ("map", "avg")
    learned = {"rope": ("none",), "pos_embed": ("learn",), "pos_resize": ("bilinear",), "pool": pools}
    fixed = {"pool_heads": (None, cfg.num_heads), "pool_mlp_ratio": (None,), "pool_block": (True,)}
    biases = {"qkv_bias": (True,), "key_bias": (True,), "in_channels": (1, 3)}  # others can't be told from its linear patches
    anything = {"num_classes": (cfg.num_classes,), "pos_grid": (cfg.pos_grid,)}
    _require(cfg, cls, {**_TOWER, **learned, **fixed, **biases, **anything})
    _require_square(cls, pos_grid=cfg.position_grid, patch_size=cfg.patch_size)
    (rows, columns), (height, width), (patch, _) = cfg.position_grid, pair(cfg.img_size), pair(cfg.patch_size)
    tower = {
        "model_type": "siglip2_vision_model",
        "hidden_size": cfg.embed_dim,
        "intermediate_size": round(cfg.embed_dim * cfg.mlp_ratio),
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "num_channels": cfg.in_channels,
        "num_patches": rows * columns,
        "patch_size": patch,
        "hidden_act": _ACTIVATIONS[cfg.mlp],
        "layer_norm_eps": cfg.norm_eps,
        "vision_use_head": cfg.pool == "map",
    }
    labels = label_config(model.classes, num_classes=cfg.num_classes, multi_label=model.multi_label)
    config = {"model_type": "siglip2", "vision_config": tower, **labels} if cfg.num_classes else tower
    images = preprocessing_of(model)
    processor = {
        "image_processor_type": "Siglip2ImageProcessor",
        "patch_size": patch,
        "max_num_patches": height // patch * (width // patch),
        "do_convert_rgb": images.in_channels == 3,
        "do_resize": True,
        "resample": {"bilinear": 2, "bicubic": 3}[images.interpolation],  # Pillow's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
    notes = [f"its image processor keeps the aspect ratio, where Vitrail makes images of {height}x{width} px"]
    if not cfg.num_classes and cfg.pool == "avg":
        notes.append(_mean_note(cls, "tokens"))
    return Target(
        cls, {"architectures": [cls], **config, "torch_dtype": "float32"}, _siglip2_tensors(model), processor, tuple(notes)
    )


def _siglip2_tensors(model: ModernViT) -> dict[str, Tensor]:
    """Return the tensors by transformers' names: those of query, key and value of the pooling are one."""
    own, pooling = dict[str, Tensor](), dict[str, list[Tensor]]()
    for name, value in cpu_state(model).items():
        theirs, form = SIGLIP2_LAYOUT.names(name), SIGLIP2_LAYOUT.form(name)
        if re.match(r"attn_pool\.(q|kv)\.", name):
            pooling.setdefault(theirs[0], []).append(value)
        else:
            own |= dict(zip(theirs, [value] if form is None else form.write(value, model.config), strict=True))
    joined = {**own, **{name: torch.cat(parts) for name, parts in pooling.items()}}
    return {name if name.startswith("classifier.") else f"vision_model.{name}": value for name, value in joined.items()}

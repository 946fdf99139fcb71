"""More modern ViTs of transformers: SigLIP 2's NaFlex, C-RADIO, Pixio, MLCD, V-JEPA 2 and others; names and config.json."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vitrail.settings.modern import ModernConfig
from vitrail.weights.libraries.transformers.config import vision_config
from vitrail.weights.libraries.transformers.modern import DINOV3, INTERNVL, activation_field, internvl_fields, same_fields
from vitrail.weights.libraries.transformers.names import Spelling
from vitrail.weights.library import Config, FamilyLayout
from vitrail.weights.names import CHANNELS_FIRST_PATCH, LINEAR_PATCH, STACKED, STILL_PATCH, TOKENS, Form
from vitrail.weights.targets import Inexpressible

# --------------------------------------------------------------------------------------------------------------------
# Names: the parts of ours that are others there; "{}" stands for query, key and value

_ENCODER: Spelling = {
    r"^blocks\.": "encoder.layers.",
    r"\.attn\.qkv\.": ".self_attn.{}_proj.",
    r"\.attn\.proj\.": ".self_attn.out_proj.",
    r"\.norm(.)\.": r".layer_norm\1.",
    r"^norm\.": "post_layernorm.",
}
SIGLIP2: Spelling = {
    r"^head\.": "classifier.",
    r"^pos_embed$": "embeddings.position_embedding.weight",
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^attn_pool\.latent$": "head.probe",
    r"^attn_pool\.(q|kv)\.": "head.attention.in_proj_",
    r"^attn_pool\.proj\.": "head.attention.out_proj.",
    r"^attn_pool\.norm\.": "head.layernorm.",
    r"^attn_pool\.mlp\.": "head.mlp.",
    **_ENCODER,
}
MLCD: Spelling = {
    r"^cls_token$": "embeddings.class_embedding",
    r"^patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"^norm_pre\.": "pre_layrnorm.",
    r"^rope\.cls$": "class_pos_emb",
    **_ENCODER,
}
RADIO: Spelling = {
    r"^(cls|reg)_token$": "embeddings.cls_register_token",
    r"^pos_embed$": "embeddings.position_embedding",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.qkv\.": ".attention.{}_proj.",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.ls(.)\.gamma$": r".layer_scale\1.lambda1",
    r"\.mlp\.fc1_g\.": ".mlp.gate_proj.",
    r"\.mlp\.fc1_x\.": ".mlp.up_proj.",
}
RADIO_GATED: Spelling = {**RADIO, r"\.mlp\.fc2\.": ".mlp.down_proj."}
PIXIO: Spelling = {
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^norm\.": "layernorm.",
    r"^blocks\.": "layers.",
    r"\.attn\.qkv\.": ".attention.{}_proj.",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
}
SAPIENS2: Spelling = {
    r"\.attn\.(.)_(proj|norm)\.": r".attention.\1_\2.",
    **{ours: theirs for ours, theirs in DINOV3.items() if "qkv" not in ours and "bias" not in ours},
}
QIANFAN: Spelling = {**INTERNVL, r"^blocks\.": "layers."}
VJEPA2: Spelling = {
    r"^patch_embed\.proj\.": "encoder.embeddings.patch_embeddings.proj.",
    r"^norm\.": "encoder.layernorm.",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.proj\.": ".attention.proj.",
}

_QKV = ("query", "key", "value")
_RADIO_PATCH = ("embeddings.patch_projection.weight", "input_conditioner.norm_mean", "input_conditioner.norm_std")
_PIXIO_TOKENS = ("embeddings.cls_token", "embeddings.position_embeddings")
RADIO_PARTS = {"patch_embed.proj.weight": _RADIO_PATCH, "patch_embed.proj.bias": _RADIO_PATCH}
PIXIO_PARTS = dict.fromkeys(("cls_token", "reg_token", "pos_embed"), _PIXIO_TOKENS)


def _names(name: str, spelling: Spelling, parts: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names of a library for ours."""
    if name in parts:
        return parts[name]
    for pattern, theirs in spelling.items():
        name = re.sub(pattern, theirs, name)
    return tuple(name.format(part) for part in "qkv") if "{}" in name else (name,)


def _vjepa2_names(name: str) -> tuple[str, ...]:
    """Return the names of a V-JEPA 2 for ours: query, key and value are not called projections there."""
    if ".attn.qkv." in name:
        return tuple(
            f"encoder.layer.{name.removeprefix('blocks.').replace('.attn.qkv.', f'.attention.{part}.')}" for part in _QKV
        )
    return _names(name, VJEPA2, {})


# --------------------------------------------------------------------------------------------------------------------
# Forms


def _no_write(x: Tensor, cfg: Any) -> list[Tensor]:
    raise Inexpressible("this layout of transformers is not written")


def _read(function: Callable[[list[Tensor]], Tensor]) -> Form:
    return Form(function, _no_write)


def _radio_weight(parts: list[Tensor]) -> Tensor:
    """Fold the normalisation of the pixels into the projection: W (x - m) / s = (W / s) x - W m / s."""
    return CHANNELS_FIRST_PATCH.read(parts[:1]) / parts[2].flatten()[:, None, None]


def _radio_bias(parts: list[Tensor]) -> Tensor:
    return -(_radio_weight(parts) * parts[1].flatten()[:, None, None]).sum(dim=(1, 2, 3))


def _pixio_tokens(parts: list[Tensor]) -> Tensor:
    """Add the positions of the class tokens to them, (1, n, D): they never change."""
    return parts[0] + parts[1][:, : parts[0].shape[1]]


def _third(kind: str) -> Form:
    """Return the form of query, or of key and value, in a projection of all three."""
    query = kind == "q"
    return _read(lambda parts: parts[0][: len(parts[0]) // 3] if query else parts[0][len(parts[0]) // 3 :])


SIGLIP2_FORMS: dict[str, Form] = {
    "patch_embed.proj.weight": LINEAR_PATCH,
    "pos_embed": TOKENS,
    **{f"attn_pool.{part}.{kind}": _third(part) for part in ("q", "kv") for kind in ("weight", "bias")},
}
RADIO_FORMS: dict[str, Form] = {
    "patch_embed.proj.weight": _read(_radio_weight),
    "patch_embed.proj.bias": _read(_radio_bias),
    "cls_token": _read(lambda parts: parts[0][None, :1]),
    "reg_token": _read(lambda parts: parts[0][None, 1:]),
}
PIXIO_FORMS: dict[str, Form] = {
    "cls_token": _read(lambda parts: _pixio_tokens(parts)[:, :1]),
    "reg_token": _read(lambda parts: _pixio_tokens(parts)[:, 1:]),
    "pos_embed": _read(lambda parts: parts[1][:, parts[0].shape[1] :]),
}


def _form(name: str, forms: Mapping[str, Form]) -> Form | None:
    return forms.get(name, STACKED if ".attn.qkv." in name else None)


# --------------------------------------------------------------------------------------------------------------------
# config.json

_HEADS = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps"}


def siglip2_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a SigLIP 2 with patches cut beforehand."""
    config = vision_config(config)
    code = {"rope": "none", "norm_eps": 1e-6, "mlp": "gelu_tanh", "pos_resize": "bilinear"}
    return {**code, **same_fields(config, **_HEADS), **activation_field(config, gated=False)}


def radio_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a C-RADIO."""
    code = {"rope": "none", "norm_eps": 1e-6, "pos_resize": "linear", "pos_square": True}
    gated = bool(config.get("use_swiglu_ffn"))
    return {
        **code,
        **same_fields(config, image_size="img_size", **_HEADS),
        **({} if gated else activation_field(config, gated=False)),
    }


def pixio_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a Pixio."""
    fields = same_fields(config, image_size="img_size", **_HEADS)
    return {"rope": "none", "norm_eps": 1e-6, "pos_resize": "cubic", **fields, **activation_field(config, gated=False)}


def mlcd_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of an MLCD."""
    config = vision_config(config)
    rope = {"rope": "grid", "rope_layout": "half", "rope_axes": "yx", "rope_temperature": _theta(config, 1e4)}
    fields = {"norm_eps": 1e-5, **same_fields(config, image_size="img_size", **_HEADS)}
    return {**fields, **rope, **activation_field(config, gated=False)}


def sapiens2_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a Sapiens2."""
    rope = {"rope": "centred", "rope_layout": "half", "rope_axes": "yx", "rope_temperature": _theta(config, 100.0)}
    moves = {"pos_embed_shift": "rope_shift", "pos_embed_jitter": "rope_jitter", "pos_embed_rescale": "rope_rescale"}
    same = same_fields(config, num_attention_heads="num_heads", rms_norm_eps="norm_eps", image_size="img_size", **moves)
    return {"norm_eps": 1e-6, **same, **rope, **activation_field(config, gated=config.get("use_gated_mlp", True))}


def qianfan_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a Qianfan-OCR tower."""
    return {**internvl_fields(config), "pos_resize": "cubic"}


def vjepa2_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a V-JEPA 2."""
    fields = same_fields(config, crop_size="img_size", **_HEADS)
    return {"rope": "video", "norm_eps": 1e-6, **fields, **activation_field(config, gated=False)}


def _theta(config: Config, default: float) -> float:
    return float(config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or default)


# --------------------------------------------------------------------------------------------------------------------
# Layouts


def _layout(
    name: str,
    shows: tuple[str, ...],
    spelling: Spelling,
    fields: Callable[[Config], dict[str, Any]],
    *,
    parts: Mapping[str, tuple[str, ...]] | None = None,
    forms: Mapping[str, Form] | None = None,
    **more: Any,
) -> FamilyLayout:
    """Return the layout of a class of transformers."""
    names = functools.partial(_names, spelling=spelling, parts=parts or {})
    form = functools.partial(_form, forms=forms or {})
    ignored = rf"mask_token$|inv_freq$|position_ids$|{more.pop('ignored', r'(?!)')}"
    shown = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", *shows)
    return FamilyLayout(ModernConfig, f"transformers {name}", shown, names, form, ignored=ignored, fields=fields, **more)


def _flat(shape: Callable[[str], tuple[int, ...]]) -> bool:
    """Return whether patches are cut beforehand: SigLIP's own projection is a convolution of the same name."""
    return len(shape("embeddings.patch_embedding.weight")) == 2


_NO_POOL = {r"^attn_pool\.": "unused.", **SIGLIP2}  # the classifier takes the mean; its file has the pooling all the same
_RADIO_SUMMARY = "the class token; theirs are the class tokens of summary_idxs, side by side: features().tokens[:, [0, 1]]"
_PIXIO_MEAN = "the first class token; theirs is the mean of all: features().tokens[:, :8].mean(1)"
SIGLIP2_LAYOUT = _layout("SigLIP 2", ("norm.weight",), SIGLIP2, siglip2_fields, forms=SIGLIP2_FORMS, fits=_flat)
VJEPA2_LAYOUT = FamilyLayout(
    ModernConfig,
    "transformers V-JEPA 2",
    ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"),
    _vjepa2_names,
    lambda name: _form(name, {"patch_embed.proj.weight": STILL_PATCH}),
    encoder="encoder.",
    ignored=r"(^|\.)predictor\.",
    fields=vjepa2_fields,
    assumes={"pool": "the mean of the tokens; VJEPA2ForVideoClassification has layers of attention there, which are left out"},
)
TOWER_LAYOUTS = (
    _layout("SigLIP 2", ("head.weight",), _NO_POOL, siglip2_fields, forms=SIGLIP2_FORMS, fits=_flat, ignored=r"\bhead\."),
    SIGLIP2_LAYOUT,
    *(
        _layout(
            "C-RADIO",
            ("cls_token", f"blocks.0.mlp.{first}.weight"),
            spelling,
            radio_fields,
            parts=RADIO_PARTS,
            forms=RADIO_FORMS,
            ignored=r"summary_idxs$",
            assumes={"pool": _RADIO_SUMMARY},
        )
        for first, spelling in (("fc1", RADIO), ("fc1_g", RADIO_GATED))
    ),
    _layout(
        "Pixio",
        ("cls_token", "norm.weight"),
        PIXIO,
        pixio_fields,
        parts=PIXIO_PARTS,
        forms=PIXIO_FORMS,
        fits=lambda shape: shape("embeddings.cls_token")[1] > 1,
        assumes={"pool": _PIXIO_MEAN},
    ),
    _layout("MLCD", ("rope.cls",), MLCD, mlcd_fields, forms={"cls_token": TOKENS}),
    FamilyLayout(
        ModernConfig,
        "transformers Sapiens2",
        ("patch_embed.proj.weight", "blocks.0.attn.q_proj.weight", "blocks.0.attn.q_norm.weight", "blocks.0.gamma_1"),
        functools.partial(_names, spelling=SAPIENS2, parts={}),
        lambda name: None,
        ignored=r"mask_token$",
        fields=sapiens2_fields,
    ),
    VJEPA2_LAYOUT,
    _layout(
        "Qianfan-OCR",
        ("blocks.0.ls1.gamma", "blocks.0.attn.proj.weight", "blocks.0.norm1.bias"),
        QIANFAN,
        qianfan_fields,
        forms={"pos_embed": TOKENS},
        lacks=r"[qk]_norm",
    ),
)

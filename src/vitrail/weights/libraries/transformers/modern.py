"""Modern ViTs of transformers: DINOv3, AIMv2, Pixtral's and InternVL's towers: names and config.json."""

from __future__ import annotations

import functools
import re
from typing import Any

from vitrail.settings.modern import ModernConfig
from vitrail.weights.libraries.transformers.config import vision_config
from vitrail.weights.libraries.transformers.names import Spelling
from vitrail.weights.library import ACTIVATIONS, Config, FamilyLayout, from_list
from vitrail.weights.names import STACKED, STACKED_PAIR, TOKENS, Form

# --------------------------------------------------------------------------------------------------------------------
# Names: the parts of ours that are others there; "{}" stands for query, key and value

DINOV3: Spelling = {
    r"^(cls_token)$": r"embeddings.\1",
    r"^reg_token$": "embeddings.register_tokens",
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.",
    r"^blocks\.": "model.layer.",
    r"\.attn\.qkv\.": ".attention.{}_proj.",
    r"\.attn\.(.)_bias$": r".attention.\1_proj.bias",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.gamma_(.)$": r".layer_scale\1.lambda1",
    r"\.mlp\.fc1_g\.": ".mlp.gate_proj.",
    r"\.mlp\.fc1(_x)?\.": ".mlp.up_proj.",
    r"\.mlp\.fc2\.": ".mlp.down_proj.",
}
AIMV2: Spelling = {
    r"^pos_embed$": "embeddings.position_embedding.weight",
    r"^patch_embed\.proj\.": "embeddings.patch_embed.",
    r"^patch_embed\.norm\.": "embeddings.rms_norm.",
    r"^norm\.": "rms_norm.",
    r"^attn_pool\.latent$": "head.cls_token",
    r"^attn_pool\.kv\.(.*)$": r"head.{}_proj.\1",
    r"^attn_pool\.proj\.": "head.output_proj.",
    r"^blocks\.": "encoder.layers.",
    r"\.attn\.qkv\.": ".attention.{}_proj.",
    r"\.attn\.proj\.": ".attention.out_proj.",
    r"\.norm(.)\.": r".rms_norm\1.",
    r"\.mlp\.fc1_g\.": ".ffn.gate_proj.",
    r"\.mlp\.fc1_x\.": ".ffn.up_proj.",
    r"\.mlp\.fc2\.": ".ffn.down_proj.",
}
PIXTRAL: Spelling = {
    r"^patch_embed\.proj\.": "patch_conv.",
    r"^norm_pre\.": "ln_pre.",
    r"^blocks\.": "transformer.layers.",
    r"\.attn\.qkv\.": ".attention.{}_proj.",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"\.norm1\.": ".attention_norm.",
    r"\.norm2\.": ".ffn_norm.",
    r"\.mlp\.fc1_g\.": ".feed_forward.gate_proj.",
    r"\.mlp\.fc1_x\.": ".feed_forward.up_proj.",
    r"\.mlp\.fc2\.": ".feed_forward.down_proj.",
}
INTERNVL: Spelling = {
    r"^cls_token$": "embeddings.cls_token",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^patch_embed\.proj\.": "embeddings.patch_embeddings.projection.",
    r"^norm\.": "layernorm.",
    r"^blocks\.": "encoder.layer.",
    r"\.attn\.qkv\.": ".attention.{}_proj.",
    r"\.attn\.proj\.": ".attention.projection_layer.",
    r"\.attn\.(q|k)_norm\.": r".attention.\1_norm.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.ls(.)\.gamma$": r".lambda_\1",
}


def _names(name: str, spelling: Spelling, older: tuple[str, str] = ("", "")) -> tuple[str, ...]:
    """Return the names of a library for ours."""
    if name.startswith("head."):
        return (f"classifier.{name.removeprefix('head.')}",)
    for pattern, theirs in spelling.items():
        name = re.sub(pattern, theirs, name)
    name = name.replace(*older)
    return tuple(name.format(part) for part in ("kv" if name.startswith("head.") else "qkv")) if "{}" in name else (name,)


def _form(name: str) -> Form | None:
    if name == "pos_embed":
        return TOKENS
    return STACKED if ".attn.qkv." in name else STACKED_PAIR if name.startswith("attn_pool.kv.") else None


# --------------------------------------------------------------------------------------------------------------------
# config.json


def dinov3_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a DINOv3."""
    config = vision_config(config)
    fields = {
        **same_fields(config, num_attention_heads="num_heads", layer_norm_eps="norm_eps", image_size="img_size"),
        **same_fields(config, pos_embed_shift="rope_shift", pos_embed_jitter="rope_jitter", pos_embed_rescale="rope_rescale"),
        **activation_field(config, gated=bool(config.get("use_gated_mlp"))),
    }
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 100.0
    return {**fields, "rope": "centred", "rope_layout": "half", "rope_axes": "yx", "rope_temperature": float(theta)}


def aimv2_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of an AIMv2."""
    config = vision_config(config)
    fields = same_fields(config, num_attention_heads="num_heads", rms_norm_eps="norm_eps", image_size="img_size")
    return {"norm_eps": 1e-5, **fields, "rope": "none", "pos_embed": "sincos2d", **activation_field(config, gated=True)}


def pixtral_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of a Pixtral."""
    config = vision_config(config)
    fields = {
        **same_fields(config, num_attention_heads="num_heads", image_size="img_size"),
        **activation_field(config, gated=True),
    }
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 1e4
    return {**fields, "rope": "alternating", "rope_layout": "half", "rope_temperature": float(theta), "norm_eps": 1e-5}


def internvl_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ModernConfig in the config.json of an InternVL."""
    config = vision_config(config)
    fields = same_fields(config, num_attention_heads="num_heads", layer_norm_eps="norm_eps", image_size="img_size")
    pool = {"pool": "avg" if config["use_mean_pooling"] else "cls"} if "use_mean_pooling" in config else {}
    return {"norm_eps": 1e-6, **fields, **pool, "rope": "none", **activation_field(config, gated=False)}


def same_fields(config: Config, **names: str) -> dict[str, Any]:
    """Return the fields of ours that a config.json has under other names."""
    return {ours: from_list(config[theirs]) for theirs, ours in names.items() if config.get(theirs) is not None}


def activation_field(config: Config, *, gated: bool) -> dict[str, Any]:
    """Return the activation. Raises ValueError for one that the MLP does not have."""
    name = config.get("hidden_act")
    if name is None or (gated and name == "silu"):
        return {}
    if gated or name not in ACTIVATIONS:
        kind, has = config.get("model_type", "this model"), "silu" if gated else " or ".join(sorted(set(ACTIVATIONS.values())))
        raise ValueError(f'{kind} has hidden_act "{name}", and a modern ViT {has} there; open it with transformers')
    return {"mlp": ACTIVATIONS[name]}


# --------------------------------------------------------------------------------------------------------------------
# Layouts

_FAMILY = functools.partial(
    FamilyLayout, ModernConfig, "transformers", form=_form, ignored=r"mask_token$|inv_freq$|position_ids$"
)
_SHOWN = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
DINOV3_LAYOUT = _FAMILY((*_SHOWN, "blocks.0.gamma_1"), names=functools.partial(_names, spelling=DINOV3), fields=dinov3_fields)
DINOV3_HUB_LAYOUT = _FAMILY(
    (*_SHOWN, "blocks.0.gamma_1"),
    names=functools.partial(_names, spelling=DINOV3, older=("model.layer.", "layer.")),
    fields=dinov3_fields,
)
AIMV2_LAYOUT = _FAMILY(
    (*_SHOWN, "blocks.0.mlp.fc1_g.weight"), names=functools.partial(_names, spelling=AIMV2), fields=aimv2_fields
)
PIXTRAL_LAYOUT = _FAMILY((*_SHOWN, "norm_pre.weight"), names=functools.partial(_names, spelling=PIXTRAL), fields=pixtral_fields)
INTERNVL_LAYOUT = _FAMILY(
    (*_SHOWN, "blocks.0.ls1.gamma"), names=functools.partial(_names, spelling=INTERNVL), fields=internvl_fields
)
MODERN_LAYOUTS = (DINOV3_LAYOUT, DINOV3_HUB_LAYOUT, AIMV2_LAYOUT, PIXTRAL_LAYOUT, INTERNVL_LAYOUT)

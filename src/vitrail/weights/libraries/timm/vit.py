"""Plain ViTs of timm: ViT, DeiT, EVA, CLIP and SigLIP towers, and the raw files of DeiT, DINO and MAE with the same names."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from vitrail.models import ViT
from vitrail.settings import Preprocessing, ViTConfig
from vitrail.weights.libraries.timm.card import first_conv, folder, pretrained_cfg
from vitrail.weights.library import Config, Evidence, Export, Layout, Question, activation, from_list
from vitrail.weights.names import CHUNKS, NO_KEY_BIAS, VIT_SPELLINGS, VIT_TABLE, key_table
from vitrail.weights.targets import (
    ANY,
    GELUS,
    Class,
    Inexpressible,
    State,
    canonical,
    check,
    mlp_ratio,
    preprocessing_of,
    same_names,
    with_token_rows,
)

# --------------------------------------------------------------------------------------------------------------------
# Names and what they leave open


def open_fields(evidence: Evidence) -> Iterator[Question]:
    """Ask about the architectures of timm whose tensors are those of a plain ViT."""
    fields, known = evidence.fields, evidence.known
    behind = fields["fc_norm"] and not fields["class_token"] and not fields["qkv_bias"] and fields["init_values"] is None
    if behind and "fc_norm" not in known and not evidence.config.get("architecture"):
        why = "the pattern of vit_base_patch16_rpn_224, whose norms stand behind the branches"
        way = 'give norm_position="res-post" and rope="none" for that; if yours stand before them'
        yield Question("fc_norm", f"{why}: {way}", (True,))
    if fields["pre_norm"] and (not fields["final_norm"] or fields["pool"] == "map"):
        yield from rotary("the pattern of the Perception Encoders, which add rotary positions that no tensor shows", evidence)
    elif not fields["final_norm"] and not fields["class_token"]:
        yield from rotary("the pattern of Qwen3's encoder, which adds rotary positions that no tensor shows", evidence)


def rotary(why: str, evidence: Evidence) -> Iterator[Question]:
    """Ask whether learned positions are all that there are."""
    if "pos_embed" in evidence.shapes and "pos_embed" not in evidence.known:
        yield Question("pos_embed", f"{why}: give rope='grid', or if yours has no others", ("learn",))


def open_fields_of_gammas(evidence: Evidence) -> Iterator[Question]:
    """Ask as `open_fields`, and whether it is DeiT III or RoPE-ViT, which have LayerScale under the same names."""
    yield from open_fields(evidence)
    fields, rows = evidence.fields, evidence.shapes.get("pos_embed", (1, 0))[1]
    beside = fields["class_token"] and math.isqrt(rows) ** 2 == rows  # the class token has no position
    if beside and fields["init_values"] is not None and not fields["reg_tokens"] and not evidence.config.get("architecture"):
        why = "the pattern of DeiT III, and of RoPE-ViT, which adds rotary positions that no tensor shows"
        yield from rotary(why, evidence)


TABLE = (*VIT_TABLE, *key_table([("head.weight", "head.proj.weight")]))  # the last in open_clip, around a tower of timm's
VIT_LAYOUT = Layout(
    name="timm",
    anchor="patch_embed.proj.weight",
    table=TABLE,
    spellings=CHUNKS,
    ignored=r"(mask_token|decoder_|decoder\.|head\.(mlp|last_layer|projection)|predictor)",
    mixed_gelu=True,
    questions=open_fields,
)
GAMMA_LAYOUT = dataclasses.replace(VIT_LAYOUT, spellings=VIT_SPELLINGS, questions=open_fields_of_gammas)
EVA_LAYOUT = Layout(
    name="timm EVA",  # and BEiT, whose relative positions are rejected
    anchor="patch_embed.proj.weight",
    table=(*key_table([("blocks.#.attn.qkv.bias", ("blocks.#.attn.q_bias", "blocks.#.attn.v_bias"), NO_KEY_BIAS)]), *TABLE),
    spellings=VIT_SPELLINGS,
    ignored=r"mask_token",
    questions=lambda evidence: rotary(
        "these are the names of EVA, and EVA-02 adds rotary positions that no tensor shows", evidence
    ),
)

# --------------------------------------------------------------------------------------------------------------------
# config.json

ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (  # what a name implies that the tensors do not show
    (r"_clip_quickgelu_", {"mlp": "quick_gelu"}),
    (r"_clip_", {"mlp": "gelu"}),
    (r"(base_patch32|so400m_patch16|giantopt_patch16)_siglip|large_patch16_siglip_(gap_)?512", {"mlp": "gelu_tanh"}),
    (r"siglip|_gap_|_map_", {"mlp": "gelu"}),
    (r"^vit_base_patch16_gap_224$", {"num_heads": 16}),
    (r"_map_", {"pool_include_prefix": False}),
    (r"^test_vit2?$", {"num_heads": 2}),
    (r"^test_vit[34]$", {"num_heads": 3}),
    (r"^test_vit3$", {"pool_include_prefix": True}),
    (r"^eva_giant_", {"pos_embed": "learn"}),
)

NO_PLAIN_VIT = (  # names whose tensors look like a plain ViT's
    (r"_rpn_|^eva02_enormous", "its norms stand behind attention and MLP"),
    (r"rope|^eva02_|_dinov3|^vit_pe_|^qwen3_vit|^naflexvit_.*rope", "its positions are rotary"),
)
POOLS = {"token": "cls", "avg": "avg", "map": "map"}


def config_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ViTConfig that architecture, model_args and pretrained_cfg state."""
    if "architecture" not in config:
        return {}
    name, args = str(config["architecture"]), dict(config.get("model_args") or {})
    for pattern, why in NO_PLAIN_VIT:
        if re.search(pattern, name):
            raise ValueError(f"{name} is not a plain ViT: {why}; open it with timm")
    fields: dict[str, Any] = {}
    for pattern, implied in ARCHITECTURES:
        if re.search(pattern, name):
            fields = {**implied, **fields}
    size = (config.get("pretrained_cfg") or {}).get("input_size")
    if size:
        fields["img_size"] = tuple(size[1:])
    pool = args.get("global_pool", config.get("global_pool"))
    if pool in POOLS:
        fields["pool"] = POOLS[pool]
    elif pool:
        raise ValueError(f'timm\'s global_pool "{pool}" is none of {", ".join(POOLS)}; load with strict=False and pool=…')
    if args.get("act_layer") is not None:
        fields["mlp"] = activation(str(args["act_layer"]).lower())
    for argument in ("num_heads", "img_size", "norm_eps"):
        if args.get(argument) is not None:
            fields[argument] = from_list(args[argument])
    if args.get("pool_include_prefix") is not None:
        fields["pool_include_prefix"] = bool(args["pool_include_prefix"])
    return fields


# --------------------------------------------------------------------------------------------------------------------
# Writing

_ANY_VALUE = ("qkv_bias", "qk_norm", "init_values", "pre_norm", "final_norm", "no_embed_class")
_VALUES: dict[str, Collection[Any] | None] = {"mlp": (*GELUS, "relu"), **dict.fromkeys(_ANY_VALUE, ANY)}
VIT = Class(
    "timm's VisionTransformer",
    {
        **_VALUES,
        **dict.fromkeys(("fc_norm", "class_token", "reg_tokens", "pos_embed", "pool_include_prefix"), ANY),
        "norm_eps": (1e-6, 1e-5),
        "pool": ("cls", "avg", "map"),
    },
)
SWIGLU = Class(
    "timm's VisionTransformer with SwiGLU", {**VIT.values, "mlp": ("swiglu",), "norm_eps": (1e-6,), "pool": ("cls", "avg")}
)
DISTILLED = Class("timm's VisionTransformerDistilled", {**_VALUES, "dist_token": (True,), "pos_embed": ("learn", "sincos2d")})


def timm_config(cfg: ViTConfig, images: Preprocessing, *, licence: str | None = None) -> dict[str, Any]:
    """Return the keys of config.json by which timm's `create_model("local-dir:FOLDER")` opens the weights of `timm_state`.

    SwiGLU, epsilon and distillation token are no arguments that JSON can hold: an architecture is named that has them.
    Raises Inexpressible for what timm lacks.
    """
    target = DISTILLED if cfg.dist_token else SWIGLU if cfg.mlp == "swiglu" else VIT
    check(cfg, target)
    if cfg.pos_embed == "none" and (cfg.class_token or cfg.reg_tokens):
        raise Inexpressible(
            f'{target.name} has no pos_embed "none" with a class token or registers, which old versions then drop'
        )
    if target is DISTILLED:
        architecture = "deit_base_distilled_patch16_224"
    else:
        small_eps = "vit_giant_patch14_dinov2" if target is SWIGLU else "vit_base_patch16_224"
        architecture = small_eps if cfg.norm_eps == 1e-6 else "vit_base_patch16_clip_224"
    return {
        "architecture": architecture,
        "model_args": model_args(cfg),
        "pretrained_cfg": pretrained_cfg(
            cfg,
            images,
            licence,
            fixed_input_size=True,
            **first_conv(cfg),
            classifier=["head", "head_dist"] if cfg.dist_token else "head",
        ),
    }


def model_args(cfg: ViTConfig) -> dict[str, Any]:
    """Return the arguments of timm's class."""
    dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
    same = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "qkv_bias", "qk_norm", "init_values", "pre_norm")
    args: dict[str, Any] = {
        "in_chans": cfg.in_channels,
        "mlp_ratio": mlp_ratio(2 * hidden if cfg.mlp == "swiglu" else hidden, dim),
        **same_names(cfg, *same, "final_norm"),
    }
    if not cfg.dist_token:
        args |= {
            **same_names(cfg, "fc_norm", "class_token", "reg_tokens"),
            "no_embed_class": cfg.no_embed_class or cfg.reg_tokens > 0,  # without it timm's registers have positions
            "global_pool": "token" if cfg.pool == "cls" else cfg.pool,
        }
    if cfg.mlp in ("gelu_tanh", "quick_gelu", "relu"):
        args["act_layer"] = cfg.mlp
    if cfg.pos_embed == "none":
        args["pos_embed"] = "none"
    if canonical(cfg).pool_include_prefix:
        args["pool_include_prefix"] = True
    return args


def timm_state(state: State, cfg: ViTConfig) -> tuple[dict[str, Tensor], ViTConfig]:
    """Return weights of the same model that we and timm read: in timm all prefix tokens have a position, or none."""
    if cfg.dist_token:
        return with_token_rows(state, cfg, present=True)
    return with_token_rows(state, cfg, present=False) if cfg.reg_tokens else (dict(state), cfg)


def plan(model: ViT) -> Export:
    """Export a folder for `create_model("local-dir:…")`, which is a run folder too."""
    timm_config(model.config, preprocessing_of(model))
    return folder(model)

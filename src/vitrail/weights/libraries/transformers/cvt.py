"""CvT of transformers: names, and config.json."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from vitrail.models import Cvt
from vitrail.models.cvt import FIRST, LATER
from vitrail.settings.cvt import CvtConfig
from vitrail.weights.libraries.transformers.write import image_processor, label_config, sides
from vitrail.weights.library import Config, Export, FamilyLayout
from vitrail.weights.targets import Inexpressible, mlp_ratio, preprocessing_of, rename_family

_CONV = "attention.attention.convolution_projection_{}.convolution_projection"
CVT_PARTS = (  # patterns of ours, and what stands there
    (r"^stage(\d+)\.patch_embed\.proj\.", r"cvt.encoder.stages.\1.embedding.convolution_embeddings.projection."),
    (r"^stage(\d+)\.patch_embed\.norm\.", r"cvt.encoder.stages.\1.embedding.convolution_embeddings.normalization."),
    (r"^stage(\d+)\.blocks\.", r"cvt.encoder.stages.\1.layers."),
    (r"^stage(\d+)\.", r"cvt.encoder.stages.\1."),
    *((rf"\battn\.conv_proj_{kind[0]}\.conv\.", _CONV.format(kind) + ".convolution.") for kind in ("query", "key", "value")),
    *((rf"\battn\.conv_proj_{kind[0]}\.bn\.", _CONV.format(kind) + ".normalization.") for kind in ("query", "key", "value")),
    *((rf"\battn\.proj_{kind[0]}\.", f"attention.attention.projection_{kind}.") for kind in ("query", "key", "value")),
    (r"\battn\.proj\.", "attention.output.dense."),
    (r"\bmlp\.fc1\.", "intermediate.dense."),
    (r"\bmlp\.fc2\.", "output.dense."),
    (r"\bnorm1\.", "layernorm_before."),
    (r"\bnorm2\.", "layernorm_after."),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
)


def cvt_names(name: str) -> tuple[str, ...]:
    """Return the name in transformers."""
    for pattern, theirs in CVT_PARTS:
        name = re.sub(pattern, theirs, name)
    return (name,)


def cvt_args(cfg: CvtConfig) -> dict[str, Any]:
    """Return the arguments of transformers' CvtConfig that decide what it computes."""
    count = len(cfg.depths)
    embeds = [FIRST, *[LATER] * (count - 1)]
    ratios = [mlp_ratio(round(dim * cfg.mlp_ratio), dim) for dim in cfg.embed_dims]
    return {
        "num_channels": cfg.in_channels,
        "embed_dim": list(cfg.embed_dims),
        "depth": list(cfg.depths),
        "num_heads": list(cfg.num_heads),
        "mlp_ratio": ratios,
        "qkv_bias": [cfg.qkv_bias] * count,
        "stride_kv": [cfg.kv_stride] * count,
        "cls_token": [*[False] * (count - 1), True],
        "patch_sizes": [one.kernel for one in embeds],
        "patch_stride": [one.stride for one in embeds],
        "patch_padding": [one.padding for one in embeds],
        "kernel_qkv": [3] * count,
        **dict.fromkeys(("padding_kv", "padding_q", "stride_q"), [1] * count),
        "qkv_projection_method": ["dw_bn"] * count,
        **dict.fromkeys(("drop_rate", "attention_drop_rate", "drop_path_rate"), [0.0] * count),
    }


_FIXED = (  # what is the same in every CvT of the paper
    *("cls_token", "patch_sizes", "patch_stride", "patch_padding", "kernel_qkv", "padding_kv", "padding_q", "stride_q"),
    "qkv_projection_method",
)


def cvt_fields(config: Config) -> dict[str, Any]:
    """Return the fields of CvtConfig that code and config.json state, whose omitted values are those of CvT-13.

    Raises ValueError for what is no CvT of the paper.
    """
    fields: dict[str, Any] = {"mlp": "gelu"}
    if config.get("model_type") != "cvt":
        return fields
    config = {**cvt_args(CvtConfig()), **config}
    dims, depths, heads = (tuple(config[name]) for name in ("embed_dim", "depth", "num_heads"))
    paper = cvt_args(CvtConfig(embed_dims=dims, depths=depths, num_heads=heads, kv_stride=config["stride_kv"][0]))
    for name in (*_FIXED, "stride_kv"):
        if list(config[name]) != paper[name]:
            raise ValueError(f"{name} {list(config[name])} is not the paper's {paper[name]}; open it with transformers")
    return fields | {"num_heads": heads, "kv_stride": config["stride_kv"][0]}


CVT_LAYOUT = FamilyLayout(
    CvtConfig,
    "transformers",
    shows=("stage0.patch_embed.proj.weight", "stage0.blocks.0.attn.conv_proj_q.conv.weight"),
    names=cvt_names,
    encoder="cvt.",
    fields=cvt_fields,
    assumes={
        "mlp": "GELU, as transformers computes it; the paper's code, which trained microsoft/cvt-*, has its sigmoid form: "
        'mlp="quick_gelu"'
    },
)
CVT_ENCODER_LAYOUT = dataclasses.replace(
    CVT_LAYOUT,
    name="transformers CvtModel",
    lacks=r"(^|\.)layernorm\.weight$",
    fields=lambda config: {**cvt_fields(config), "final_norm": False},
    assumes={**CVT_LAYOUT.assumes, "final_norm": "CvtModel, which has no norm after the last block"},
)


def cvt_plan(model: Cvt) -> Export:
    """Export a folder for from_pretrained. Raises Inexpressible for what transformers' class does not compute."""
    cfg, theirs = model.config, "transformers' CvtForImageClassification"
    if not cfg.num_classes:
        raise Inexpressible(f"{theirs} has no num_classes 0")
    for name, value in (("mlp", "gelu"), ("norm_eps", CvtConfig.norm_eps), ("final_norm", True)):
        if getattr(cfg, name) != value:
            raise Inexpressible(f"{theirs} computes {name} {value}, and this model has {getattr(cfg, name)}")
    for stage, depth in enumerate(cfg.depths):
        if depth <= stage:  # its code indexes the rates of stochastic depth by the stage
            raise Inexpressible(f"{theirs} needs {stage + 1} blocks in stage {stage}, and this model has {depth}")
    config = {
        "architectures": ["CvtForImageClassification"],
        "model_type": "cvt",
        "image_size": sides(cfg.img_size),
        **cvt_args(cfg),
        **label_config(model.classes, num_classes=cfg.num_classes, multi_label=model.multi_label),
        "torch_dtype": "float32",
    }
    return Export(
        "hf",
        'transformers.CvtForImageClassification.from_pretrained("PATH")',
        tensors=rename_family(model, CVT_LAYOUT),
        beside={"config.json": config, "preprocessor_config.json": image_processor(preprocessing_of(model), "ViT")},
    )

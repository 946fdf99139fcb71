"""Checkpoints of hybrid ViTs: infer the shape, and resize positions and the projection of the feature map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.models.positions import grid_of, resize_patch, resize_positions
from vitrail.models.resnet_stem import KINDS
from vitrail.settings import Pair, pair
from vitrail.settings.hybrid import HYBRID_SIZES, HybridConfig, stride_of
from vitrail.weights.family import FamilyFile, FamilyReader
from vitrail.weights.library import Question

_CNN, _PROJ, _QKV = "patch_embed.backbone", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"
_BLOCKS = {"bit": f"{_CNN}.stages.{{stage}}.blocks.{{}}.conv1.weight", "resnet-d": f"{_CNN}.layer{{number}}.{{}}.conv1.weight"}


def infer(file: FamilyFile) -> HybridConfig:
    """Infer the config of the model in a file. Raises ValueError, naming the answers, for what nothing determines."""
    known = {**file.stated, **file.overrides}
    fields: dict[str, Any] = {**_cnn(file), **_shape(file)}
    heads = known.get("num_heads") or _stored_heads(file) or published_heads(fields)
    if heads is None:
        dim = fields["embed_dim"]
        answers = [dim // width for width in (64, 96, 32, 16) if dim % width == 0][:2] or [1]
        question = Question("num_heads", f"width {dim}; heads are most often of 64", tuple(answers))
        raise ValueError(f"the tensors do not tell {question}")
    fields |= _positions(file, fields, file.stated.get("img_size"), file.overrides.get("img_size"))
    stated: dict[str, Any] = {
        name: known[name] for name in ("mlp", "norm_eps", "cnn_eps", "pool", "pool_include_prefix") if name in known
    }
    fields |= {"pool": _pool(file, fields), **stated, "num_heads": heads}
    return HybridConfig(**fields)


def _cnn(file: FamilyFile) -> dict[str, Any]:
    """Return the fields of the convolutional network, and the patch."""
    first, kind = next(((path, kind) for path, kind in KINDS.items() if f"{_CNN}.{path}.weight" in file), ("stem.conv", "bit"))
    width, channels, *_ = file.shape(f"{_CNN}.{first}.weight")
    depths = list[int]()
    while kind != "patches" and (blocks := file.count(_blocks(kind, len(depths)))):
        depths.append(blocks)
    cells = (1, 1) if kind == "patches" else file.shape(_PROJ)[2:]
    height, across = (cell * stride_of(kind, tuple(depths)) for cell in cells)
    if kind == "resnet-d":
        (width,) = file.shape(f"{_CNN}.bn1.weight")
    return {
        "cnn": kind,
        "cnn_depths": tuple(depths),
        "cnn_width": HybridConfig.cnn_width if kind == "patches" else width,
        "patch_size": height if height == across else (height, across),
        "in_channels": channels,
    }


def _blocks(kind: str, stage: int) -> str:
    return _BLOCKS[kind].replace("{stage}", str(stage)).replace("{number}", str(stage + 1))


def _shape(file: FamilyFile) -> dict[str, Any]:
    """Return the fields of the Transformer that tensors show."""
    hidden, dim = file.shape("blocks.0.mlp.fc1.weight")
    return {
        "num_classes": file.shape("head.weight")[0] if "head.weight" in file else 0,
        "embed_dim": dim,
        "depth": file.count("blocks.{}.norm1.weight"),
        "mlp_ratio": hidden / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in file,
        "qk_norm": "blocks.0.attn.q_norm.weight" in file,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in file else None,
        "pre_norm": "norm_pre.weight" in file,
        "final_norm": "norm.weight" in file or "fc_norm.weight" in file,
        "fc_norm": "fc_norm.weight" in file,
        "class_token": "cls_token" in file,
        "reg_tokens": file.shape("reg_token")[1] if "reg_token" in file else 0,
        "head": "mlp" if "pre_logits.fc.weight" in file else "linear",
    }


def _pool(file: FamilyFile, fields: Mapping[str, Any]) -> str:
    """Return the pooling that tensors show, unless the file's library says otherwise."""
    if "attn_pool.latent" in file:
        return "map"
    return "avg" if fields["fc_norm"] or not fields["class_token"] else "cls"


def _stored_heads(file: FamilyFile) -> int | None:
    """Return the number of heads, if the file has an axis for them."""
    shape = file.checkpoint.shapes[file.require(_QKV)[0]]
    return shape[1] if len(shape) == 3 else None


def published_heads(fields: Mapping[str, Any]) -> int | None:
    """Return the heads of the published sizes with a CNN of this kind, this width and this MLP; None if there are none."""
    shape = [fields[name] for name in ("cnn", "embed_dim", "mlp_ratio")]
    sizes = (size for size in HYBRID_SIZES.values() if [size.cnn, size.embed_dim, size.mlp_ratio] == shape)
    return next((size.num_heads for size in sizes), None)


def _positions(file: FamilyFile, fields: Mapping[str, Any], stated: Any, asked: Any) -> dict[str, Any]:
    """Return the image size of the file's positions: the stated one, the one that is asked for, or a square, if it fits."""
    patch, tokens = pair(fields["patch_size"]), int(fields["class_token"])
    if "pos_embed" not in file:
        return {"img_size": stated or asked or 224, "pos_embed": "none"}
    rows = file.shape("pos_embed")[1]
    for placed in dict.fromkeys((tokens, 0)):
        side = math.isqrt(rows - placed)
        for size in (stated, asked, (side * patch[0], side * patch[1])):
            if size is not None and math.prod(at // part for at, part in zip(pair(size), patch, strict=True)) == rows - placed:
                return {"img_size": size, "no_embed_class": tokens > placed}
    raise ValueError(f"the position embedding has {rows} rows, which make no square; give img_size=(height, width) of the file")


# --------------------------------------------------------------------------------------------------------------------
# Another size


def resize(name: str, value: Tensor, stored: HybridConfig, config: HybridConfig) -> tuple[Tensor, str]:
    """Resize positions to another grid, and the projection to another patch."""
    if name == _PROJ and pair(stored.patch_size) != pair(config.patch_size):
        height, width = (side // config.cnn_stride for side in pair(config.patch_size))
        return resize_patch(value, to=(height, width)), f"patch {stored.patch_size} -> {config.patch_size}"
    if name == "pos_embed" and (old := _grid(stored)) != (new := _grid(config)):
        placed = stored.class_token and not stored.no_embed_class
        note = " -> ".join(f"{height}x{width}" for height, width in (old, new))
        return resize_positions(value, old=old, new=new, prefix=int(placed)), note
    return value, ""


def _grid(config: HybridConfig) -> Pair:
    return grid_of(pair(config.img_size), pair(config.patch_size))


HYBRID = FamilyReader(infer, resize)

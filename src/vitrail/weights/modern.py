"""Checkpoints of modern ViTs: infer the shape, ask for what no tensor shows, and resize positions and patches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.models.positions import grid_of, resize_patch, resize_positions, sincos_2d
from vitrail.settings import Pair, pair
from vitrail.settings.modern import ModernConfig
from vitrail.weights.family import FamilyFile, FamilyReader
from vitrail.weights.library import Question

HIDDEN = (  # fields that no tensor shows: the caller's answer, what config.json states, or the default
    *("norm_position", "norm_eps", "pool", "pool_include_prefix", "pool_heads", "rope_axes", "rope_layout"),
    *("rope_temperature", "rope_offset", "rope_ref_grid", "rope_shift", "rope_jitter", "rope_rescale"),
    *("pos_resize", "pos_square"),
)
ROPES: dict[str, dict[str, Any]] = {  # what goes with the answer to the question after rotary positions
    "none": {"norm_eps": 1e-6},
    "centred": {"norm_eps": 1e-5, "rope_layout": "half", "rope_temperature": 100.0},
    "grid": {"norm_eps": 1e-6, "rope_layout": "interleaved", "rope_temperature": 1e4},
    "video": {"norm_eps": 1e-6, "rope_layout": "interleaved", "rope_temperature": 1e4, "rope_axes": "yx"},
    "mixed": {"norm_eps": 1e-6, "rope_layout": "interleaved", "rope_temperature": 10.0, "rope_axes": "xy"},
    "alternating": {"norm_eps": 1e-5, "rope_layout": "half", "rope_temperature": 1e4},
}


def infer(file: FamilyFile) -> ModernConfig:
    """Infer the config of the model in a file. Raises ValueError, naming the answers, for what nothing determines."""
    known = {**file.stated, **file.overrides}
    fields = _shape(file)
    questions = []
    fields["rope"] = "mixed" if "rope.freqs" in file else known.get("rope")
    if fields["rope"] is None:
        why = "rotary positions leave no tensor: DINOv3's are centred, those of EVA-02, PE and RoPE-ViT a grid"
        questions.append(Question("rope", why, ("centred", "grid", "none")))
    fields |= _heads(file, fields, known.get("num_heads"))
    if fields["num_heads"] is None:
        dim = fields["embed_dim"]
        answers = [dim // width for width in (64, 128, 96, 32, 16) if dim % width == 0][:2] or [1]
        questions.append(Question("num_heads", f"width {dim}; heads are most often of 64", tuple(answers)))
    questions += _resizing(file, fields, known)
    if fields["relative_bias"] != "none" and fields["init_values"] is None and "norm_position" not in known:
        why = "without LayerScale, norms stand behind the branches in vit_relpos_*_rpn and before them in others"
        questions.append(Question("norm_position", why, ("res-post", "pre")))
    if questions:
        raise ValueError("the tensors do not tell " + "; nor ".join(map(str, questions)))
    fields |= _positions(file, fields, file.stated.get("img_size"), file.overrides.get("img_size"))
    hidden = {**ROPES[fields["rope"]], **{name: known[name] for name in HIDDEN if name in known}}
    default_pool = "map" if "attn_pool.latent" in file else "cls" if fields["class_token"] and not fields["fc_norm"] else "avg"
    config: dict[str, Any] = {"pool": default_pool, **hidden, **fields}
    if config["pool"] != "map" and default_pool == "map":
        raise ValueError(f'the file has attention pooling, and pool "{config["pool"]}" leaves it out; load, then change it')
    if config["rope"] != "grid":
        config["rope_ref_grid"] = None
    if fields["mlp"] == "gelu" and known.get("mlp", "gelu") in ("gelu_tanh", "quick_gelu", "relu"):
        config["mlp"] = known["mlp"]
    return ModernConfig(**config)


class _Names(NamedTuple):
    """Names in the first block."""

    norm: str
    attn: str
    mlp: str


_SERIAL = _Names("blocks.0.norm1", "blocks.0.attn", "blocks.0.mlp")
_PAIR = _Names("blocks.0.attns.0.norm", "blocks.0.attns.0.attn", "blocks.0.ffns.0.mlp")
_PARALLEL = _Names("blocks.0.in_norm", "blocks.0", "blocks.0")


def _block(file: FamilyFile) -> tuple[str, _Names]:
    """Return the kind of block, and its names."""
    if "blocks.0.in_proj.weight" in file:
        return "parallel", _PARALLEL
    return ("pair", _PAIR) if "blocks.0.attns.0.attn.qkv.weight" in file else ("serial", _SERIAL)


def _shape(file: FamilyFile) -> dict[str, Any]:
    """Return the fields that tensors show."""
    dim, channels, *patch = file.shape("patch_embed.proj.weight")
    block, (norm, attn, _) = _block(file)
    first, second = (
        any(f"blocks.0.{name}" in file for name in names)
        for names in (("gamma_1", "ls1.gamma", "ls.gamma", "attns.0.ls.gamma"), ("gamma_2", "ls2.gamma"))
    )
    pooled = "attn_pool.latent" in file
    parts = _parallel_parts(file, dim) if block == "parallel" else _serial_parts(file)
    pool_mlp = file.shape("attn_pool.mlp.fc1.weight")[0] if "attn_pool.mlp.fc1.weight" in file else None
    relative = next((path for path in ("shared_rel_pos", f"{attn}.rel_pos") if f"{path}.mlp.fc1.weight" in file), None)
    return {
        **parts,
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "in_channels": channels,
        "num_classes": file.shape("head.weight")[0] if "head.weight" in file else 0,
        "embed_dim": dim,
        "depth": file.count(f"blocks.{{}}.{norm.removeprefix('blocks.0.')}.weight"),
        "block": block,
        "attention": "differential" if f"{attn}.lambda_q1" in file else "softmax",
        "relative_bias": "none" if relative is None else "shared" if relative == "shared_rel_pos" else "block",
        "relative_hidden": 128 if relative is None else file.shape(f"{relative}.mlp.fc1.weight")[0],
        "qk_norm": f"{attn}.q_norm.weight" in file,
        "norm": "layer" if f"{norm}.bias" in file else "rms",
        "init_values": 1e-5 if first else None,
        "layer_scale": "attention" if first and not second and block == "serial" else "both",
        "pre_norm": "norm_pre.weight" in file,
        "embed_norm": "patch_embed.norm.weight" in file,
        "final_norm": "norm.weight" in file or "fc_norm.weight" in file,
        "fc_norm": "fc_norm.weight" in file,
        "class_token": "cls_token" in file,
        "rope_class": "rope.cls" in file,
        "reg_tokens": file.shape("reg_token")[1] if "reg_token" in file else 0,
        "pos_embed": "learn" if "pos_embed" in file else "sincos2d" if file.stated.get("pos_embed") == "sincos2d" else "none",
        "pool_block": not pooled or "attn_pool.q.weight" in file,
        "pool_mlp_ratio": None if pool_mlp is None or pool_mlp == parts["mlp_ratio"] * dim else pool_mlp / dim,
    }


def _serial_parts(file: FamilyFile) -> dict[str, Any]:
    """Return the fields of attention and MLP, where these are layers of their own."""
    _, (_, attn, mlp) = _block(file)
    fused, (dim, hidden) = f"{attn}.qkv.weight" in file, file.shape(f"{mlp}.fc2.weight")
    split = f"{mlp}.fc1_g.weight" in file
    gated = split or file.shape(f"{mlp}.fc1.weight")[0] == 2 * hidden
    query, key = ("qkv.bias", "qkv.bias") if fused else ("q_proj.bias", "k_proj.bias")
    joined = f"{attn}.q_bias" in file
    return {
        "mlp_ratio": hidden / dim,
        "mlp": "swiglu" if gated else "gelu",
        "gate": "split" if split else "packed",
        "scale_mlp": f"{mlp}.norm.weight" in file,
        "mlp_bias": f"{mlp}.fc2.bias" in file,
        "qkv": "fused" if fused else "split",
        "qkv_bias": joined or f"{attn}.{query}" in file,
        "key_bias": not joined and f"{attn}.{key}" in file,
        "proj_bias": f"{attn}.proj.bias" in file,
        "scale_attn_inner": f"{attn}.norm.weight" in file,
    }


def _parallel_parts(file: FamilyFile, dim: int) -> dict[str, Any]:
    """Return the fields of attention and MLP, where both are in one layer."""
    bias = "blocks.0.in_proj.bias" in file
    return {
        "mlp_ratio": (file.shape("blocks.0.in_proj.weight")[0] - 3 * dim) / dim,
        "mlp": "gelu",
        "qkv": "fused",
        "qkv_bias": bias,
        "key_bias": bias,
        "proj_bias": "blocks.0.attn_out_proj.bias" in file or "blocks.0.out_proj.bias" in file,
    }


def _heads(file: FamilyFile, fields: Mapping[str, Any], known: int | None) -> dict[str, Any]:
    """Return the number of heads, None if nothing tells it, and what follows from it."""
    dim, number, over = fields["embed_dim"], known, "head"
    _, (_, attn, _) = _block(file)
    maps = 2 if fields["attention"] == "differential" else 1
    inner = dim if fields["block"] == "parallel" else file.shape(f"{attn}.proj.weight")[1]
    if fields["rope"] == "mixed":
        number = file.shape("rope.freqs")[2]
    for path in ("shared_rel_pos", f"{attn}.rel_pos"):
        if f"{path}.mlp.fc2.weight" in file:
            number = file.shape(f"{path}.mlp.fc2.weight")[0]
    if maps > 1:
        number = inner // (maps * file.shape(f"{attn}.lambda_q1")[0])
    if fields["qk_norm"]:
        (width,) = file.shape(f"{attn}.q_norm.weight")
        if width == inner and known != 1:
            over = "all"
        else:
            number = inner // (maps * width)
    if fields["rope_class"]:
        number = inner // (2 * file.shape("rope.cls")[1])
    if number is None and "rope.periods" in file:
        number = inner // (4 * file.shape("rope.periods")[0])
    if number is None:
        return {"num_heads": None}
    if inner % number:
        raise ValueError(f"num_heads {number} does not divide the {inner} channels of the queries in the file")
    width = inner // number
    heads: dict[str, Any] = {"num_heads": number, "head_dim": None if inner == dim else width, "qk_norm_width": over}
    if fields["qkv"] == "split":
        groups = [file.shape(f"blocks.{at}.attn.k_proj.weight")[0] // width for at in range(fields["depth"])]
        full = next((at for at, group in enumerate(groups) if group != number), None)
        if full is not None:
            heads |= {"kv_heads": groups[full], "full_attention_blocks": full}
    return heads


def _stored_grid(file: FamilyFile) -> Pair | None:
    """Return the patch grid of positions that are stored as a grid, or as rows and columns; None for a list of them."""
    keys = file.sources("pos_embed") or ()
    shapes = [file.checkpoint.shapes[key] for key in keys]
    if [len(shape) for shape in shapes] == [4]:
        return shapes[0][1], shapes[0][2]
    return (shapes[0][1], shapes[1][1]) if len(keys) == 2 and keys[0].endswith("pos_embed_y") else None


def _resizing(file: FamilyFile, fields: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Question]:
    """Ask what no tensor of a NaFlex model shows."""
    if _stored_grid(file) is None:
        return
    radio, pooled = fields["class_token"] and not fields["final_norm"], "attn_pool.latent" in file
    if "pos_resize" not in known:
        why = "C-RADIOv3-B's and -H's keep the corners" if radio else "SigLIP 2's are bilinear, others bicubic"
        yield Question("pos_resize", why, ("linear", "linear-corners") if radio else ("bicubic", "bilinear"))
    if "pos_square" not in known:
        yield Question("pos_square", "par models, and C-RADIO, keep the aspect ratio of positions", (False, True))
    if "mlp" not in known and pooled and fields["init_values"] is None:
        yield Question("mlp", "SigLIP 2's is GELU's tanh form", ("gelu_tanh", "gelu"))


def _positions(file: FamilyFile, fields: Mapping[str, Any], stated: Any, asked: Any) -> dict[str, Any]:
    """Return the image size of the file's positions: the stated one, the one that is asked for, or a square, if it fits.

    Where they are not resized as timm's are, which happens at loading, their grid is fixed, and the image size is any.
    """
    patch = pair(fields["patch_size"])
    if "pos_embed" not in file:
        return {"img_size": stated or asked or 224}
    rows, tokens, grid = file.shape("pos_embed")[1], int(fields["class_token"]), _stored_grid(file)
    if grid is not None:
        size = (grid[0] * patch[0], grid[1] * patch[1])
        return {"img_size": stated or asked or size, "pos_grid": grid, "no_embed_class": tokens > 0}
    fixed = {**file.stated, **file.overrides}.get("pos_resize", "bicubic") != "bicubic"
    for placed in dict.fromkeys((tokens, 0)):
        side = math.isqrt(rows - placed)
        for size in ((side * patch[0], side * patch[1]),) if fixed else (stated, asked, (side * patch[0], side * patch[1])):
            if size is not None and math.prod(at // part for at, part in zip(pair(size), patch, strict=True)) == rows - placed:
                place = {"img_size": size, "no_embed_class": tokens > placed}
                return place | ({"img_size": stated or asked or size, "pos_grid": side} if fixed else {})
    raise ValueError(f"the position embedding has {rows} rows, which make no square; give img_size=(height, width) of the file")


# --------------------------------------------------------------------------------------------------------------------
# Another size


def resize(name: str, value: Tensor, stored: ModernConfig, config: ModernConfig) -> tuple[Tensor, str]:
    """Resize absolute positions to another grid, and the patch projection to another patch."""
    if name == "patch_embed.proj.weight" and pair(stored.patch_size) != pair(config.patch_size):
        return resize_patch(value, to=pair(config.patch_size)), f"patch {stored.patch_size} -> {config.patch_size}"
    if name == "pos_embed" and (old := _grid(stored)) != (new := _grid(config)):
        placed = stored.class_token and not stored.no_embed_class
        note = " -> ".join(f"{height}x{width}" for height, width in (old, new))
        how: dict[str, Any] = {"how": config.pos_resize, "square": config.pos_square}
        return resize_positions(value, old=old, new=new, prefix=int(placed), **how), note
    return value, ""


def computed(name: str, config: ModernConfig) -> Tensor | None:
    """Compute sine-cosine positions, which files omit."""
    if name != "pos_embed" or config.pos_embed != "sincos2d":
        return None
    zeros = torch.zeros(1, int(config.class_token and not config.no_embed_class), config.embed_dim)
    return torch.cat([zeros, sincos_2d(_grid(config), config.embed_dim)[None]], dim=1)


def _grid(config: ModernConfig) -> Pair:
    return grid_of(pair(config.img_size), pair(config.patch_size)) if config.pos_grid is None else pair(config.pos_grid)


MODERN = FamilyReader(infer, resize, computed)

"""Checkpoints of ViTDet and of SAM's encoders: infer the shape, ask for windows that no tensor shows, resize positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from vitrail.models.positions import grid_of, resize_patch, resize_positions
from vitrail.models.vitdet import resize_offsets
from vitrail.settings import Pair, pair
from vitrail.settings.vitdet import VitDetConfig, spread_blocks
from vitrail.weights.family import FamilyFile, FamilyReader
from vitrail.weights.library import Question

HIDDEN = ("pos_resize", "norm_eps")
"""Fields that no tensor shows: what the layout or config.json states, or the default."""
WINDOWS = ("window_size", "global_blocks")


def infer(file: FamilyFile) -> VitDetConfig:
    """Infer the config of the model in a file. Raises ValueError, naming the answers, for what nothing determines."""
    known = {**file.stated, **file.overrides}
    dim, channels, *patch = file.shape("patch_embed.proj.weight")
    depth = file.count("blocks.{}.norm1.weight")
    tables = "blocks.0.attn.rel_pos_h" in file
    spans = [_span(file, block) for block in range(depth)] if tables else []
    places = _places_in(file)
    stated = {name: file.stated[name] for name in WINDOWS if name in file.stated}
    windows = stated if len(stated) == len(WINDOWS) else windows_of(spans, None if _is_fixed(known) else places)
    questions = list(_questions(windows, spans, known, depth=depth, dim=dim))
    if questions:
        raise ValueError("the tensors do not tell " + "; nor ".join(map(str, questions)))
    neck = "conv" if "neck.0.weight" in file else "norm" if "neck.weight" in file else "none"
    fields: dict[str, Any] = {
        **{name: known[name] for name in HIDDEN if name in known},
        "relative": "decomposed" if tables else known.get("relative", "none"),
        "patch_size": patch[0] if patch[0] == patch[1] else tuple(patch),
        "in_channels": channels,
        "num_classes": file.shape("head.fc.weight")[0] if "head.fc.weight" in file else 0,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": dim // file.shape("blocks.0.attn.rel_pos_h")[1] if tables else known["num_heads"],
        "mlp_ratio": file.shape("blocks.0.mlp.fc1.weight")[0] / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in file,
        "pos_embed": "none" if places is None else "learn",
        "pre_norm": "norm_pre.weight" in file,
        "residual_blocks": tuple(block for block in range(depth) if f"blocks.{block}.residual.conv1.weight" in file),
        "neck": neck,
        **({"neck_channels": file.shape("neck.0.weight")[0]} if neck == "conv" else {}),
        **(windows or {}),
        **{name: known[name] for name in WINDOWS if windows is None and name in known},
    }
    if windows is None and spans:
        fields["window_size"] = spans[0][0]
    shape = VitDetConfig(**fields)
    whole = [span for block, span in enumerate(spans) if shape.is_global(block)]
    return dataclasses.replace(shape, **_images(whole, places, file.stated.get("img_size"), fields))


def _is_fixed(fields: Mapping[str, Any]) -> bool:
    """Return whether positions keep their grid: they are not resized as timm's are, which happens at loading."""
    return fields.get("pos_resize", "bicubic") != "bicubic"


def windows_of(spans: Sequence[Pair], places: Pair | None) -> dict[str, Any] | None:
    """Return window_size and global_blocks as the tables show them; None if these don't tell.

    `spans` are the rows and columns of each block's tables, `places` the image's grid, if that of the absolute positions is
    it. Raises ValueError for tables of three sizes and more.
    """
    kinds = list(dict.fromkeys(spans))
    windows = [kind for kind in kinds if kind[0] == kind[1] and kind != places]
    if len(kinds) > 2:
        raise ValueError(f"tables of relative positions are of {len(kinds)} sizes, and a ViTDet has one window; not a ViTDet")
    if len(kinds) == 1 and kinds[0][0] != kinds[0][1]:
        return {"window_size": 0}
    if not windows or (len(kinds) == 1 and places is None):
        return None
    window = min(windows)
    return {"window_size": window[0], "global_blocks": tuple(block for block, span in enumerate(spans) if span != window)}


def _questions(windows: Any, spans: Sequence[Pair], known: Mapping[str, Any], *, depth: int, dim: int) -> Iterator[Question]:
    """Ask for what neither tables nor config.json nor the caller tell."""
    if not spans and "window_size" not in known:
        yield Question("window_size", "blocks without tables of relative positions show no windows; 0 is none", (0, 14))
    if windows is None and "global_blocks" not in known and known.get("window_size") != 0:
        why = "the blocks that attend to the whole image, and not in windows; equal tables do not show them"
        yield Question("global_blocks", why, (spread_blocks(depth), ()))
    if not spans and known.get("num_heads") is None:
        answers = [dim // width for width in (64, 80) if dim % width == 0] or [1]
        yield Question("num_heads", f"width {dim}; heads are most often of 64", tuple(answers))


def _images(whole: Sequence[Pair], places: Pair | None, stated: int | Pair | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return img_size and pos_grid: the grid is that of the tables over whole images, else as stated, or of the positions."""
    patch, fixed = pair(fields["patch_size"]), _is_fixed(fields)
    if whole:
        grid = whole[0]
    elif places is not None and (stated is None or not fixed):
        grid = places
    else:
        grid = grid_of(pair(VitDetConfig.img_size if stated is None else stated), patch)
    height, width = grid[0] * patch[0], grid[1] * patch[1]
    own = places is not None and (places != grid or fixed)
    return {"img_size": height if height == width else (height, width), "pos_grid": places if own else None}


def _places_in(file: FamilyFile) -> Pair | None:
    """Return the grid of the absolute positions in a file; None if it has none."""
    if "pos_embed" not in file:
        return None
    _, height, width, _ = file.shape("pos_embed")
    return height, width


def _span(file: FamilyFile, block: int) -> Pair:
    """Return the rows and columns that a block's tables are made for."""
    rows, columns = (file.shape(f"blocks.{block}.attn.rel_pos_{axis}")[0] for axis in "hw")
    return (rows + 1) // 2, (columns + 1) // 2


# --------------------------------------------------------------------------------------------------------------------
# Another size


def resize(name: str, value: Tensor, stored: VitDetConfig, config: VitDetConfig) -> tuple[Tensor, str]:
    """Resize patches, absolute positions, and the tables of relative ones to another grid or window."""
    if name == "patch_embed.proj.weight" and pair(stored.patch_size) != pair(config.patch_size):
        return resize_patch(value, to=pair(config.patch_size)), f"patch {stored.patch_size} -> {config.patch_size}"
    if name == "pos_embed" and (old := _places(stored)) != (new := _places(config)):
        resized = resize_positions(value.flatten(1, 2), old=old, new=new, prefix=0)
        return resized.unflatten(1, new), f"{_by(old)} -> {_by(new)} patches"
    if ".rel_pos_" in name:
        block, axis = int(name.split(".")[1]), "hw".index(name[-1])
        side = _sides(config, block)[axis]
        if value.shape[0] != 2 * side - 1:
            return resize_offsets(value, side=side), f"offsets of {(value.shape[0] + 1) // 2} -> {side} patches"
    return value, ""


def _sides(config: VitDetConfig, block: int) -> Pair:
    """Return the rows and columns of a block's attention."""
    return _image_grid(config) if config.is_global(block) else (config.window_size, config.window_size)


def _places(config: VitDetConfig) -> Pair:
    """Return the grid of the absolute positions."""
    return _image_grid(config) if config.pos_grid is None else pair(config.pos_grid)


def _image_grid(config: VitDetConfig) -> Pair:
    return grid_of(pair(config.img_size), pair(config.patch_size))


def _by(sides: Pair) -> str:
    return f"{sides[0]}x{sides[1]}"


VITDET = FamilyReader(infer, resize)

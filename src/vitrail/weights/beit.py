"""BEiT checkpoints: infer the shape, and resize relative and absolute positions."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from vitrail.models.positions import grid_of, resize_patch, resize_positions
from vitrail.models.relative_positions import resize_table
from vitrail.settings import Pair, pair
from vitrail.settings.beit import BeitConfig
from vitrail.weights.family import FamilyFile, FamilyReader

OWN, SHARED = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"


def infer(file: FamilyFile) -> BeitConfig:
    """Infer the config of the model in a file. Raises ValueError for tensors that are not all of a BEiT's."""
    dim, channels, patch, _ = file.shape("patch_embed.proj.weight")
    own, shared = OWN in file, SHARED in file
    rows, heads = file.shape(OWN if own else SHARED)
    after = "fc_norm.weight" in file or "norm.weight" not in file
    fields: dict[str, Any] = {
        "patch_size": patch,
        "in_channels": channels,
        "num_classes": file.shape("head.weight")[0] if "head.weight" in file else 0,
        "embed_dim": dim,
        "depth": file.count("blocks.{}.norm1.weight"),
        "num_heads": heads,
        "mlp_ratio": file.shape("blocks.0.mlp.fc1.weight")[0] / dim,
        "qkv_bias": "blocks.0.attn.q_bias" in file,
        "relative_bias": "both" if own and shared else "block" if own else "shared",
        "pos_embed": "learn" if "pos_embed" in file else "none",
        "init_values": BeitConfig.init_values if "blocks.0.gamma_1" in file else None,
        "fc_norm": after,
        "pool": "avg" if after else "cls",
    }
    stated = dict(file.stated)
    height, width = grid_of_table(rows, pair(stated.pop("img_size", 0)), patch)
    size = height * patch, width * patch
    return BeitConfig(**{**fields, **stated, "img_size": size[0] if size[0] == size[1] else size})


def grid_of_table(rows: int, img_size: Pair, patch: int) -> Pair:
    """Return the grid of a table of that many rows: that of the stated image size, or a square one.

    Raises ValueError for a table of neither.
    """
    stated = img_size[0] // patch, img_size[1] // patch
    side = (math.isqrt(rows - 3) + 1) // 2
    for grid in (stated, (side, side)):
        if (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3 == rows:
            return grid
    raise ValueError(f"relative positions of {rows} rows are of no square grid; put the config.json beside the file")


def resize(name: str, value: Tensor, stored: BeitConfig, config: BeitConfig) -> tuple[Tensor, str]:
    """Resize patches, and relative and absolute positions to another grid."""
    old, new = (grid_of(pair(one.img_size), pair(one.patch_size)) for one in (stored, config))
    note = f"{old[0]}x{old[1]} -> {new[0]}x{new[1]} patches"
    if name == "patch_embed.proj.weight" and stored.patch_size != config.patch_size:
        return resize_patch(value, to=pair(config.patch_size)), f"patch {stored.patch_size} -> {config.patch_size}"
    if old == new:
        return value, ""
    if name.endswith("relative_position_bias_table"):
        return resize_table(value, old=old, new=new), note
    return (resize_positions(value, old=old, new=new, prefix=1), note) if name == "pos_embed" else (value, "")


BEIT = FamilyReader(infer, resize)

"""CaiT checkpoints: infer the shape, and resize positions and patches."""

from __future__ import annotations

import math

from torch import Tensor

from vitrail.models.positions import grid_of, resize_patch, resize_positions
from vitrail.settings import Pair, pair
from vitrail.settings.cait import CaitConfig
from vitrail.weights.family import FamilyFile, FamilyReader


def infer(file: FamilyFile) -> CaitConfig:
    """Infer the config of the model in a file. Raises ValueError for tensors that are not all of a CaiT."""
    dim, channels, *patch = file.shape("patch_embed.proj.weight")
    return CaitConfig(
        img_size=trained_size(file, (patch[0], patch[1])),
        patch_size=patch[0] if patch[0] == patch[1] else (patch[0], patch[1]),
        in_channels=channels,
        num_classes=file.shape("head.weight")[0] if "head.weight" in file else 0,
        embed_dim=dim,
        depth=file.count("blocks.{}.norm1.weight"),
        class_depth=file.count("blocks_token_only.{}.norm1.weight"),
        num_heads=file.shape("blocks.0.attn.proj_l.weight")[0],
        mlp_ratio=file.shape("blocks.0.mlp.fc1.weight")[0] / dim,
        qkv_bias="blocks.0.attn.qkv.bias" in file,
    )


def trained_size(file: FamilyFile, patch: Pair) -> int | Pair:
    """Return the image size of the positions: what config.json states if it fits them, else a square.

    Raises ValueError for positions that neither fits.
    """
    count, stated = file.shape("pos_embed")[1], file.stated.get("img_size")
    if stated is not None and math.prod(side // part for side, part in zip(pair(stated), patch, strict=True)) == count:
        return stated
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} positions make no square, and no config.json states the image size; give a folder with one")
    return side * patch[0] if patch[0] == patch[1] else (side * patch[0], side * patch[1])


def resize(name: str, value: Tensor, stored: CaitConfig, config: CaitConfig) -> tuple[Tensor, str]:
    """Resize the positions to another grid, and the patch projection to another patch."""
    old_patch, patch = pair(stored.patch_size), pair(config.patch_size)
    if name == "patch_embed.proj.weight" and patch != old_patch:
        return resize_patch(value, to=patch), f"patch {_by(old_patch)} -> {_by(patch)}"
    old, new = (grid_of(pair(cfg.img_size), pair(cfg.patch_size)) for cfg in (stored, config))
    if name == "pos_embed" and new != old:
        return resize_positions(value, old=old, new=new, prefix=0), f"grid {_by(old)} -> {_by(new)}"
    return value, ""


def _by(sides: Pair) -> str:
    return f"{sides[0]}x{sides[1]}"


CAIT = FamilyReader(infer, resize)

"""Key names of checkpoints: one table per layout, read from a library's names to ours and from ours to a library's.

A row names the tensors of the library from which one tensor of ours is made. "#" is the index of a block, and ".*" stands for
weight and bias. Several rows for one name of ours are alternative spellings: reading takes the first that the file has,
writing the first of the table.
"""

# D width · P patch · C channels

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.settings import ViTConfig, pair

# --------------------------------------------------------------------------------------------------------------------
# Forms of a tensor


class Form(NamedTuple):
    """Conversion of a library's tensors to one of ours (`read`) and back (`write`)."""

    read: Callable[[list[Tensor]], Tensor]
    write: Callable[[Tensor, ViTConfig], list[Tensor]]
    heads_axis: int | None = None
    """Axis of the library's tensor that counts the attention heads, if it has one."""
    per_head: Callable[[Tensor, int], Tensor] | None = None
    """Rearranges what `read` returns, given the number of heads; it keeps the shape."""


def patch_of(pixels: int) -> tuple[int, int] | None:
    """Return (channels, side) of a square patch of so many numbers: three channels if they make one, else one."""
    for channels in (3, 1):
        side = math.isqrt(pixels // channels)
        if side * side * channels == pixels:
            return channels, side
    return None


def _linear_patch(weight: Tensor) -> tuple[int, int]:
    """Return (channels, side) of a projection (D, C P P). Raises ValueError if they make no square patch."""
    patch = patch_of(weight.shape[1])
    if patch is None:
        raise ValueError(
            f"a patch embedding of {weight.shape[1]} numbers is no square patch of 3 channels or 1; reshape it to (D, C, P, P)"
        )
    return patch


def _read_linear_patch(parts: list[Tensor]) -> Tensor:
    """Reshape (D, P P C) to (D, C, P, P)."""
    [weight] = parts
    if weight.ndim == 4:
        return weight
    channels, side = _linear_patch(weight)
    return weight.reshape(-1, side, side, channels).permute(0, 3, 1, 2)


def _read_channels_first_patch(parts: list[Tensor]) -> Tensor:
    """Reshape (D, C P P) to (D, C, P, P)."""
    [weight] = parts
    return weight if weight.ndim == 4 else weight.reshape(-1, *_linear_patch(weight), _linear_patch(weight)[1])


def _read_pixel_norm(parts: list[Tensor]) -> Tensor:
    return _read_linear_patch([parts[0][None]]).reshape(-1)


def _write_pixel_norm(x: Tensor, cfg: ViTConfig) -> list[Tensor]:
    return [x.reshape(cfg.in_channels, *pair(cfg.patch_size)).permute(1, 2, 0).reshape(-1)]


def _read_grid(positions: Tensor) -> Tensor:
    """Reshape positions (1, rows, D) to a square grid (1, side, side, D). Raises ValueError if they make none."""
    side = math.isqrt(positions.shape[1])
    if side * side != positions.shape[1]:
        raise ValueError(
            f"{positions.shape[1]} positions make no square, as those of this library's class do; it can't be read"
        )
    return positions.unflatten(1, (side, side))


SAME = Form(lambda parts: parts[0], lambda x, cfg: [x])
STACKED = Form(torch.cat, lambda x, cfg: list(x.chunk(3)))
STACKED_PAIR = Form(torch.cat, lambda x, cfg: list(x.chunk(2)))
TOKENS = Form(lambda parts: parts[0].reshape(1, -1, parts[0].shape[-1]), lambda x, cfg: [x[0]])  # (n, D) or (D,)
TOKEN = Form(TOKENS.read, lambda x, cfg: [x.reshape(-1)])  # written as (D,)
TRANSPOSED = Form(lambda parts: parts[0].T, lambda x, cfg: [x.T])
LINEAR_PATCH = Form(_read_linear_patch, lambda x, cfg: [x.permute(0, 2, 3, 1).flatten(1)])
CHANNELS_FIRST_PATCH = Form(_read_channels_first_patch, lambda x, cfg: [x.flatten(1)])
STILL_PATCH = Form(lambda parts: parts[0].sum(2), lambda x, cfg: [torch.stack([x / 2] * 2, 2)])
"""Of a video model, (D, C, T, P, P): an image is the same frame T times. Written with the T of 2 that V-JEPA 2 has."""
GRID = Form(lambda parts: _read_grid(parts[0]), lambda x, cfg: [x.flatten(1, 2)])
# behind the row of a class token, which nothing reads
CLASS_AND_GRID = Form(lambda parts: _read_grid(parts[0][:, 1:]), lambda x, cfg: [F.pad(x.flatten(1, 2), (0, 0, 1, 0))])
FLAT = Form(lambda parts: parts[0].reshape(-1), lambda x, cfg: [x])  # LayerScale, of any number of axes
PIXEL_NORM = Form(_read_pixel_norm, _write_pixel_norm)
# Query and value without a bias of the key: zero gives the same attention
NO_KEY_BIAS = Form(
    lambda parts: torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]]), lambda x, cfg: [x.chunk(3)[0], x.chunk(3)[2]]
)

# --------------------------------------------------------------------------------------------------------------------
# Rows


class KeyRow(NamedTuple):
    """Place of one tensor of ours in a library's checkpoint."""

    ours: str
    theirs: tuple[str, ...]
    form: Form = SAME


KeyLine = tuple[str, str | tuple[str, ...]] | tuple[str, str | tuple[str, ...], Form]


def key_table(lines: Iterable[KeyLine]) -> tuple[KeyRow, ...]:
    """Expand the lines of a table into rows: each ".*" to weight and bias."""

    def expand(ours: str, theirs: str | tuple[str, ...], form: Form = SAME) -> Iterator[KeyRow]:
        parts = (theirs,) if isinstance(theirs, str) else theirs
        for kind in ("weight", "bias") if ours.endswith(".*") else ("",):
            yield KeyRow(ours.replace("*", kind), tuple(part.replace("*", kind) for part in parts), form)

    return tuple(row for line in lines for row in expand(*line))


VIT_TABLE = key_table(
    (name, name)
    for name in (
        *("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj.*", "norm_pre.*"),
        *("blocks.#.norm1.*", "blocks.#.attn.qkv.*", "blocks.#.attn.q_norm.*", "blocks.#.attn.k_norm.*"),
        *("blocks.#.attn.proj.*", "blocks.#.ls1.gamma"),
        *("blocks.#.norm2.*", "blocks.#.mlp.fc1.*", "blocks.#.mlp.fc2.*", "blocks.#.ls2.gamma", "norm.*"),
        *("attn_pool.latent", "attn_pool.q.*", "attn_pool.kv.*", "attn_pool.proj.*", "attn_pool.norm.*"),
        *("attn_pool.mlp.fc1.*", "attn_pool.mlp.fc2.*"),
        *("fc_norm.*", "pre_logits.fc.*", "head.*", "head_dist.*"),
    )
)
"""Our own names, which are timm's."""

CHUNKS = ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),)
"""Another spelling of our names: DINOv2's blocks in chunks, each under its index of all."""
VIT_SPELLINGS = ((r"\.gamma_([12])$", r".ls\1.gamma"), *CHUNKS)
"""The same, with LayerScale as in DeiT III, RoPE-ViT and EVA."""

"""Patch grid: resizing of patch projections and positions, sine-cosine positions, masks."""

# B batch · C channels · D width · L patches of the grid · N tokens (prefix + patches)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.models.resampling import antialiased_matrix, plain_matrix
from vitrail.settings import Pair, ViTConfig, pair

_INVERSES: dict[tuple[int, int], Tensor] = {}


def resize_patch(weight: Float[Tensor, "D C h w"], *, to: Pair) -> Float[Tensor, "D C _ _"]:
    """Resize the patch projection to another patch size, (height, width). Exactly the input if the size is the same.

    FlexiViT's pseudo-inverse resize (Beyer et al. 2023, section 3.4): with B the matrix that resizes a patch (bicubic,
    antialiased), the new filters are (Bᵀ)⁺ w. Where patches grow, a resized patch has exactly the embedding of the
    original; where they shrink, the nearest one on average. B is one matrix down times one across, and so is its inverse.
    Raises ValueError for a side below one pixel.
    """
    if min(to) < 1:
        raise ValueError(f"patch_size {to} must be at least 1 pixel")
    if tuple(weight.shape[2:]) == to:
        return weight
    wide = torch.float32 if weight.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    down, across = (inverse_resize(old, new).to(weight.device, wide) for old, new in zip(weight.shape[2:], to, strict=True))
    resized = ((weight.to(wide) @ across).mT @ down).mT  # (D, C, _, _): as two products of plain matrices, the fastest way
    return resized.to(weight.dtype, memory_format=torch.contiguous_format)


def inverse_resize(old: int, new: int) -> Float[Tensor, "{old} {new}"]:
    """Return the pseudo-inverse of the matrix (new, old) that resizes one image side; its columns are resized unit vectors."""
    inverse = _INVERSES.get((old, new))
    if inverse is None:
        with torch.inference_mode(False):  # what is kept must do for a call that learns, too
            unit = torch.eye(old, dtype=torch.float64, device="cpu")[None, None]
            inverse = torch.linalg.pinv(F.interpolate(unit, size=(new, old), mode="bicubic", antialias=True)[0, 0])
        if type(inverse) is Tensor:  # torch.export computes with tensors that hold no numbers
            _INVERSES[old, new] = inverse
    return inverse


def sincos_2d(grid: Pair, dim: int) -> Float[Tensor, "L D"]:
    """Fixed 2-D sine-cosine positions: a quarter of the width each for sin x, cos x, sin y, cos y (Chen et al. 2021)."""
    omega = 1e4 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega  # (L, D/4)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


RESIZES: dict[str, dict[str, Any]] = {  # by ModernConfig.pos_resize
    "bicubic": {"mode": "bicubic", "antialias": True},
    "bilinear": {"mode": "bilinear", "antialias": True},
    "cubic": {"mode": "bicubic"},
    "linear": {"mode": "bilinear"},
    "linear-corners": {"mode": "bilinear", "align_corners": True},
}
"""Arguments of torch's `interpolate`."""


def resize_positions(
    pos_embed: Float[Tensor, "1 _ D"], *, old: Pair, new: Pair, prefix: int, how: str = "bicubic", square: bool = False
) -> Float[Tensor, "1 _ D"]:
    """Resize position embeddings to another grid: bicubic, antialiased; prefix rows stay. The input if old is new.

    `how` is another row of RESIZES. With `square` the new grid is the upper left part of a square of its longer side.
    """
    if is_symbolic(new):
        return resize_positions_in_graph(pos_embed, old=old, new=new, prefix=prefix, how=how, square=square)
    if old == new:
        return pos_embed
    head, rows = pos_embed[:, :prefix], pos_embed[:, prefix:]
    image = rows.reshape(1, *old, -1).permute(0, 3, 1, 2).float()  # (1, D, gh, gw)
    (height, width), arguments = (max(new), max(new)) if square else new, RESIZES[how]
    if width == 1:  # torch 2.14 repeats the first row where the new width is 1: turned, it does not
        image = F.interpolate(image.transpose(2, 3), size=(1, height), **arguments).transpose(2, 3)
    else:
        image = F.interpolate(image, size=(height, width), **arguments)
    image = image[:, :, : new[0], : new[1]]
    return torch.cat([head, image.flatten(2).transpose(1, 2).to(rows.dtype)], dim=1)


def is_symbolic(size: Pair) -> bool:
    """Return True for a size that a traced graph leaves open."""
    return any(isinstance(side, torch.SymInt) for side in size)


def resize_positions_in_graph(
    pos_embed: Float[Tensor, "1 _ D"], *, old: Pair, new: Pair, prefix: int, how: str, square: bool
) -> Float[Tensor, "1 _ D"]:
    """Resize position embeddings to a grid that a traced graph leaves open. Raises ValueError for a grid in a square."""
    if square:
        raise ValueError("its positions are those of a square around the image")
    arguments = RESIZES[how]
    cubic = arguments["mode"] == "bicubic"

    def matrix(before: int, after: int) -> Float[Tensor, "_ _"]:
        if arguments.get("antialias"):
            return antialiased_matrix(before, after, cubic=cubic)
        return plain_matrix(before, after, cubic=cubic, corners=bool(arguments.get("align_corners")))

    down, across = (matrix(*sides).to(pos_embed.device) for sides in zip(old, new, strict=True))
    head, rows = pos_embed[:, :prefix], pos_embed[0, prefix:]
    image = rows.float().unflatten(0, old).permute(2, 0, 1)  # (D, gh, gw)
    resized = (down @ image @ across.T).flatten(1).T[None]  # (1, L, D)
    return torch.cat([head, resized.to(rows.dtype)], dim=1)


def positions_at(
    grid: Pair,
    pos_embed: Float[Tensor, "1 _ D"],
    *,
    trained: Pair,
    prefix: int,
    cache: dict[Pair, tuple[Tensor, Tensor]],
    how: str = "bicubic",
    square: bool = False,
) -> Float[Tensor, "1 _ D"]:
    """Return `resize_positions` from the trained grid to another one, cached while gradients are off."""
    ways: dict[str, Any] = {"old": trained, "new": grid, "prefix": prefix, "how": how, "square": square}
    if (
        is_symbolic(grid)
        or grid == trained
        or (torch.is_grad_enabled() and pos_embed.requires_grad)
        or torch.compiler.is_compiling()
    ):
        return resize_positions(pos_embed, **ways)
    of, resized = cache.get(grid, (None, None))
    # compared by value: a fused optimizer changes weights without a trace in their version counter
    fresh = of is not None and (of.dtype, of.device) == (pos_embed.dtype, pos_embed.device) and torch.equal(of, pos_embed)
    if resized is None or not fresh:
        with torch.inference_mode(False), torch.no_grad():
            of = pos_embed.detach().clone()
            resized = resize_positions(of, **ways)
        cache[grid] = of, resized
    return resized


def token_mask(sizes: Int64[Tensor, "B 2"], *, grid: Pair, patch: Pair, prefix: int) -> Bool[Tensor, "B N"]:
    """Mask that is True for the prefix tokens and for each patch with a pixel of its image, of height and width `sizes`."""
    inside = []
    for axis, (side, count) in enumerate(zip(patch, grid, strict=True)):
        edges = torch.arange(count, device=sizes.device) * side
        inside.append(edges < sizes[:, axis, None])  # (B, gh) and (B, gw)
    patches = (inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)  # (B, L)
    return F.pad(patches, (prefix, 0), value=True)  # (B, N)


def require_resizable(cfg: ViTConfig, patch: Pair) -> None:
    """Raise ValueError if the model's patches can't be resized, or if `patch` is invalid."""
    if min(patch) < 1:
        raise ValueError(f"patch_size {patch} must be at least 1 pixel")
    fixed = 'stem "conv"' if cfg.stem == "conv" else "patch_norm true" if cfg.patch_norm else ""
    if fixed:
        height, width = pair(cfg.patch_size)
        raise ValueError(
            f"a model with {fixed} cuts its own patches of {height}x{width} and no others, not {patch[0]}x{patch[1]}; "
            "leave the other patch out"
        )


def grid_of(size: Pair, patch: Pair, *, or_else: str = "another patch_size") -> Pair:
    """Return patch rows and columns. Raises ValueError, which suggests `or_else`, if the patch does not divide the image."""
    for side, part in zip(size, patch, strict=True):
        if side % part or side < part:
            near = max(1, round(side / part)) * part
            raise ValueError(f"image side {side} is not a multiple of patch {part}; use {near}, or {or_else}")
    return size[0] // patch[0], size[1] // patch[1]

"""Weights for other images than they were made for: other channels, other patches. Pure functions of tensors.

Positions on another grid are `vitrail.models.vit.resize_positions`.
"""

# D width · C channels · h w patch

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.config import Pair


def adapt_channels(weight: Float[Tensor, "D C h w"], *, to: int, how: Literal["repeat", "keep"]) -> Float[Tensor, "D _ h w"]:
    """The filters of the patch projection for `to` channels. Exactly the input where they are as many already.

    "repeat" goes through the filters again and again and scales them by C / to, so that activations stay as large as they
    were: an image whose channels are all the same gives what it gave, where `to` is 1 or a multiple of C. For one channel
    that is the sum of the filters. "keep" leaves the first C channels as they are and lets the others start at zero: RGB
    and depth starts as the RGB model.
    Raises ValueError for no channels, and where "keep" would lose some.
    """
    channels = weight.shape[1]
    if to < 1:
        raise ValueError(f"in_channels {to} must be at least 1")
    if to == channels:
        return weight
    if how == "keep":
        if to < channels:
            raise ValueError(f'{to} channels can\'t keep the filters of all {channels}; take "repeat", or {channels} and more')
        return F.pad(weight, (0, 0, 0, 0, 0, to - channels))
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if to == 1:
        return wide.sum(dim=1, keepdim=True).to(weight.dtype)
    return (wide[:, torch.arange(to) % channels] * (channels / to)).to(weight.dtype)


def resize_patch(weight: Float[Tensor, "D C h w"], *, to: Pair) -> Float[Tensor, "D C _ _"]:
    """The patch projection for patches of another size, (height, width). Exactly the input where the size is the same.

    FlexiViT's pseudo-inverse resize (Beyer et al. 2023, section 3.4): with B the matrix that resizes a patch (bicubic,
    antialiased), the new filters are (Bᵀ)⁺ w. Where patches grow, a resized patch has exactly the embedding of the
    original; where they shrink, the nearest one on average. B is one matrix down times one across, and so is its inverse.
    Raises ValueError for a side below one pixel.
    """
    if min(to) < 1:
        raise ValueError(f"patch_size {to} must be at least 1 pixel")
    if tuple(weight.shape[2:]) == to:
        return weight
    down, across = (inverse_resize(old, new).to(weight.device) for old, new in zip(weight.shape[2:], to, strict=True))
    return (down.T @ weight.double() @ across).to(weight.dtype)


def inverse_resize(old: int, new: int) -> Float[Tensor, "{old} {new}"]:
    """Pseudo-inverse of the matrix (new, old) that resizes one side of an image; its columns are resized unit vectors."""
    unit = torch.eye(old, dtype=torch.float64)[None, None]
    resize = F.interpolate(unit, size=(new, old), mode="bicubic", antialias=True)[0, 0]
    return torch.linalg.pinv(resize)


def rectangle(rows: int, like: Pair | None = None) -> Pair:
    """The grid (height, width) of a table of `rows` positions: `like` where it has as many, else the square.

    Raises ValueError where neither fits: the file does not say its grid, and the user has to.
    """
    if like is not None and like[0] * like[1] == rows:
        return like
    side = math.isqrt(rows)
    if rows < 1 or side * side != rows:
        given = f" nor {like[0]}x{like[1]}" if like is not None else ""
        raise ValueError(f"{rows} positions are no square grid{given}; say the image size that the weights were made for")
    return side, side

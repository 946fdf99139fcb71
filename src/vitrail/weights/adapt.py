"""Weights for other images than they were made for. Pure functions of tensors.

Patches of another size and positions on another grid are `resize_patch` and `resize_positions` in `vitrail.models.vit`.
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

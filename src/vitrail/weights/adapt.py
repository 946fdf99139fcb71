"""Adapt weights to other images. Pure functions of tensors.

Patches of another size and positions on another grid are `resize_patch` and `resize_positions` in `vitrail.models.positions`.
"""

# D width · C channels · h w patch

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def copy_like(value: Tensor, slot: Tensor) -> Tensor:
    """Copy a value to memory of the model's own, in its dtype and layout: the file, or the other model, may change."""
    return torch.empty_like(slot, device="cpu").copy_(value)  # a layer may want its weights in channels_last


def adapt_channels(weight: Float[Tensor, "D C h w"], *, to: int, how: Literal["repeat", "keep"]) -> Float[Tensor, "D _ h w"]:
    """Adapt the filters of the patch projection to `to` channels. Returns the input if it has as many.

    "repeat" repeats the filters and scales them by C / to, which preserves the scale of activations: an image of equal
    channels gives the same output if `to` is 1 or a multiple of C. For one channel that is the sum of the filters. "keep"
    keeps the first C channels and initialises the others to zero: RGB and depth starts as the RGB model.
    Raises ValueError for no channels, and if "keep" would drop some.
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

"""Resizing as a product with a matrix that is computed from the sizes: a graph can hold it for sizes it does not know."""

# o old size of one side · n new size of it

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

AHEAD = 3
"""Places beyond each edge that a cubic kernel reaches, without antialiasing."""


def count_as_tensor(count: int, *, dtype: torch.dtype) -> Float[Tensor, 1]:
    """Return a size as a tensor, also where it is a symbol of a traced graph."""
    return torch.arange(count, dtype=dtype)[-1:] + 1


def cubic_kernel(x: Tensor, a: float) -> Tensor:
    """Return the cubic convolution kernel (Keys 1981)."""
    x = x.abs()
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def linear_kernel(x: Tensor) -> Tensor:
    """Return the triangle of linear interpolation."""
    return (1 - x.abs()).clamp(min=0)


def antialiased_matrix(old: int, new: int, *, cubic: bool, dtype: torch.dtype = torch.float32) -> Float[Tensor, "_new _old"]:
    """Return the matrix that resizes one side as Pillow does, and torch's `interpolate` with antialias.

    Where a side shrinks, the kernel is as much wider. Either size may be a symbol.
    """
    scale = count_as_tensor(old, dtype=dtype) / count_as_tensor(new, dtype=dtype)
    centres = (torch.arange(new, dtype=dtype) + 0.5) * scale  # (n,)
    apart = (torch.arange(old, dtype=dtype)[None] + 0.5 - centres[:, None]) / scale.clamp(min=1)  # (n, o)
    weights = cubic_kernel(apart, -0.5) if cubic else linear_kernel(apart)
    return weights / weights.sum(1, keepdim=True)


def plain_matrix(
    old: int, new: int, *, cubic: bool, corners: bool = False, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "_new _old"]:
    """Return the matrix that resizes one side as torch's `interpolate` does without antialias; edges are repeated.

    `new` may be a symbol. `corners` places the first and the last on those of the old side.
    """
    count, at = count_as_tensor(new, dtype=dtype), torch.arange(new, dtype=dtype)
    places = at * ((old - 1) / (count - 1).clamp(min=1)) if corners else (at + 0.5) * (old / count) - 0.5
    if not cubic and not corners:
        places = places.clamp(min=0)  # as torch does for linear interpolation alone
    beyond = torch.arange(-AHEAD, old + AHEAD, dtype=dtype)
    apart = beyond[None] - places[:, None]  # (n, o + 2 AHEAD)
    weights = cubic_kernel(apart, -0.75) if cubic else linear_kernel(apart)
    first, inside, last = weights.split([AHEAD + 1, old - 2, AHEAD + 1], dim=1) if old > 1 else (weights, None, None)
    if inside is None or last is None:
        return first.sum(1, keepdim=True)
    return torch.cat([first.sum(1, keepdim=True), inside, last.sum(1, keepdim=True)], dim=1)

"""Relative position bias of the patches of a whole image and a class token (Bao et al. 2022): tables, and other grids."""

# B batch · gh gw grid · N tokens = 1 + gh gw · h heads · rows of a table = (2 gh - 1) (2 gw - 1) + 3

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.models.windows import relative_index
from vitrail.settings import Pair

Bias = Float[Tensor, "*B h N N"]
"""Bias of every pair of tokens, for all images or for each."""
_TO_PATCH, _TO_CLASS, _CLASS = 0, 1, 2  # the last rows of a table: class token to patch, patch to it, and it to itself


class Places(NamedTuple):
    """Places of the tokens of one grid: all that attention with relative position bias needs to know beside them."""

    mask: Bool[Tensor, "B N"] | None
    """True for the tokens that are there; None: all are."""
    rows: Int64[Tensor, "*B N N"] | None
    """Row of a table for each pair of tokens; None for a model without tables."""
    resize: tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]] | None
    """Matrices that resize a table's offsets, down and across; None at the trained grid."""
    shared: Bias | None
    """Bias that all blocks add; None if there is none."""


def pair_index(grid: Pair, *, device: torch.device | None = None) -> Int64[Tensor, "N N"]:
    """Return the row of a table for each pair of tokens, the class token first."""
    offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    index = F.pad(relative_index(grid, device=device), (1, 0, 1, 0), value=offsets + _CLASS)
    index[0, 1:], index[1:, 0] = offsets + _TO_PATCH, offsets + _TO_CLASS
    return index


def chosen_places(places: Places, tokens: Int64[Tensor, "B _N"]) -> Places:
    """Return the places of some tokens of each image, in their order. The mask is not changed."""
    down, across = tokens[:, :, None], tokens[:, None]
    rows = None if places.rows is None else places.rows[down, across]  # (B, N, N)
    shared = None if places.shared is None else places.shared[:, down, across].transpose(0, 1)  # (B, h, N, N)
    return places._replace(rows=rows, shared=shared)


def bias_table(grid: Pair, num_heads: int) -> Float[Tensor, "_rows h"]:
    """Return a table of zeros: a row for each offset of two patches, and three for the class token's pairs."""
    return torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, num_heads)


def bias_of(table: Float[Tensor, "_rows h"], places: Places) -> Bias:
    """Return the bias of every pair of tokens from a table."""
    assert places.rows is not None
    if places.resize is not None:
        table = _resized(table, *(matrix.to(table) for matrix in places.resize))
    return F.embedding(places.rows, table).movedim(-1, -3)


def resize_matrix(old: int, new: int) -> Float[Tensor, "_ _"]:
    """Return the matrix (2 new - 1, 2 old - 1) that resizes a table along one side of a grid.

    The offsets 1, 2, 3 … of the old side are placed at 1, 1 + q, 1 + q + q² …, with q such that the last one comes to the new
    side's last, and values between them are interpolated linearly. So near offsets stay as they are.
    """
    low, high = 1.01, 1.5  # a smaller grid has no such q: the least one keeps the offsets nearly as they are
    while high - low > 1e-6:
        q = (low + high) / 2
        reach = (q ** (old - 1) - 1) / (q - 1)
        low, high = (low, q) if reach > new - 1 else (q, high)
    after = np.cumsum(q ** np.arange(old - 1))
    places = np.concatenate([-after[::-1], [0.0], after])
    columns = [np.interp(np.arange(1 - new, new), places, unit) for unit in np.eye(2 * old - 1)]
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def resize_table(table: Float[Tensor, "_rows h"], *, old: Pair, new: Pair) -> Float[Tensor, "_new h"]:
    """Resize relative position bias from one grid to another; the rows of the class token stay. The input if old is new."""
    if old == new:
        return table
    down, across = (resize_matrix(*sides).to(table) for sides in zip(old, new, strict=True))
    return _resized(table, down, across)


def _resized(table: Tensor, down: Tensor, across: Tensor) -> Float[Tensor, "_new h"]:
    offsets, rest = table[:-3].unflatten(0, (down.shape[1], across.shape[1])), table[-3:]  # (2 gh - 1, 2 gw - 1, h)
    return torch.cat([torch.einsum("yi,ijh,xj->yxh", down, offsets, across).flatten(0, 1), rest])

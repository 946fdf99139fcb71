"""Relative position bias from a small MLP of log-spaced offsets, as in Swin v2 (Liu et al. 2022), for tokens of whole images.

A pair of patches (i, j) has the offset (Δy, Δx) = place(i) - place(j), and its attention score the bias
MLP(sign(Δ) · log(1 + |Δ|)), one value for each head. Pairs with a prefix token have none. The offsets are counted, not scaled
to the image, so that the same weights serve every grid.
"""

# b 1, or B where images have tokens of their own · N tokens (prefix + patches) · gh gw grid · h heads

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.models.linear import Linear
from vitrail.settings import Pair


class RelativePlaces(NamedTuple):
    """Places of the tokens, and what the blocks need of them."""

    places: Int64[Tensor, "b N 2"]
    """Row and column of each token, from 1 on; 0 for prefix tokens."""
    extent: Pair
    """Rows and columns of the grid that they are places of."""
    rows: Int64[Tensor, "b N N"]
    """Row of the table of offsets for each pair of tokens; the last row is that of pairs without an offset."""
    shared: Float[Tensor, "b h N N"] | None = None
    """Bias that all blocks add; None where each has its own."""

    @classmethod
    def of(cls, places: Int64[Tensor, "b N 2"], extent: Pair) -> RelativePlaces:
        """Number the pairs of some tokens."""
        gh, gw = extent
        y, x = places.unbind(-1)
        down, across = (at[:, :, None] - at[:, None, :] for at in (y, x))
        rows = (down + gh - 1) * (2 * gw - 1) + across + gw - 1
        patch = y > 0
        none = (2 * gh - 1) * (2 * gw - 1)
        return cls(places, extent, rows.masked_fill(~(patch[:, :, None] & patch[:, None, :]), none))

    def of_tokens(self, tokens: Int64[Tensor, "B n"]) -> RelativePlaces:
        """Return the places of some tokens of each image; a shared bias is left out."""
        places = self.places.expand(tokens.shape[0], -1, -1)
        return self.of(places.gather(1, tokens[..., None].expand(-1, -1, 2)), self.extent)


def places_of(grid: Pair, *, prefix: int, device: torch.device) -> Int64[Tensor, "1 N 2"]:
    """Return the place of each token of a whole grid: 0 for prefix tokens, then rows and columns from 1 on."""
    y, x = (torch.arange(1, side + 1, device=device) for side in grid)
    return F.pad(torch.cartesian_prod(y, x), (0, 0, prefix, 0))[None]


def log_spaced(offsets: Float[Tensor, "R 2"]) -> Float[Tensor, "R 2"]:
    """Return sign(Δ) · log(1 + |Δ|) of offsets."""
    return offsets.sign() * offsets.abs().log1p()


class OffsetMlp(nn.Module):
    """Two layers around ReLU, from an offset to a bias for each head."""

    def __init__(self, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(2, hidden)
        self.fc2 = Linear(hidden, num_heads)

    def forward(self, offsets: Float[Tensor, "R 2"]) -> Float[Tensor, "R h"]:
        return self.fc2(F.relu(self.fc1(offsets)))


class RelativeMlp(nn.Module):
    """Bias of every pair of tokens. Without the dropout that timm has inside the MLP in training."""

    def __init__(self, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.mlp = OffsetMlp(num_heads, hidden)

    def forward(self, relative: RelativePlaces) -> Float[Tensor, "b h N N"]:
        weight, (gh, gw) = self.mlp.fc1.weight, relative.extent
        y, x = (torch.arange(1 - side, side, dtype=torch.float32, device=weight.device) for side in (gh, gw))
        table = self.mlp(log_spaced(torch.cartesian_prod(y, x)).to(weight.dtype))  # (R, h)
        return F.embedding(relative.rows, F.pad(table, (0, 0, 0, 1))).permute(0, 3, 1, 2)

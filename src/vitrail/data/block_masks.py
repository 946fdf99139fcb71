"""Masks of patches by blocks (Bao et al. 2022, algorithm 1), keyed per image and of an exact size."""

# M images or views · gh gw grid · L patches = gh gw

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.settings import Pair

BLOCKS = 10
"""Blocks that are tried. One that would mask more than is left is dropped; what is missing in the end are single patches."""
LEAST = 4
"""Smallest area of a block in patches, unless less is left."""
ASPECT = 0.3
"""Ratios of height and width are log-uniform from this to its inverse, as in BEiT."""


def draw_block_masks(draws: Draws, counts: Int64[Tensor, " M"], *, grid: Pair) -> Bool[Tensor, "M L"]:
    """Mask exactly `counts` patches of each image, most of them in rectangular blocks.

    All is computed on the CPU for all images at once: BEiT's loop ends when enough is masked, this one after a fixed number
    of blocks, and random patches make up the number.
    """
    height, width = grid
    rows, columns = torch.arange(height), torch.arange(width)
    mask = torch.zeros(len(counts), height, width, dtype=torch.bool)
    for block in range(BLOCKS):
        area, aspect, top, left = draws.uniform(f"mask_block_{block}", 4).unbind(1)
        missing = (counts - mask.sum((1, 2))).float()
        area = missing.clamp(max=LEAST) + area * (missing - LEAST).clamp(min=0)
        ratio = (math.log(ASPECT) * (1 - 2 * aspect)).exp()
        high = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top, left = (top * (height - high + 1)).floor(), (left * (width - wide + 1)).floor()
        down = (rows >= top[:, None]) & (rows < (top + high)[:, None])  # (M, gh)
        across = (columns >= left[:, None]) & (columns < (left + wide)[:, None])  # (M, gw)
        both = mask | (down[:, :, None] & across[:, None, :])
        fits = both.sum((1, 2)) <= counts
        mask = torch.where(fits[:, None, None], both, mask)
    order = mask.flatten(1) + draws.uniform("mask_rest", height * width)  # masked ones first, then random ones
    ranks = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks < counts[:, None]

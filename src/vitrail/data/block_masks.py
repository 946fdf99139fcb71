"""Masks of patches by blocks (Bao et al. 2022, algorithm 1), keyed per image and of an exact size."""

# M images or views · m those that are not finished · gh gw grid · L patches

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.settings import Pair

BLOCKS = 100
"""Blocks that are drawn at most; patches that none of them has reached are then masked at random."""
LEAST = 4
"""Smallest area of a block in patches, unless fewer are to be masked; BEiT's own is 16."""
ASPECT = 0.3
"""Ratios of height and width are log-uniform from this to its inverse, as in BEiT."""


def draw_block_masks(
    draws: Draws, counts: Int64[Tensor, " M"], *, grid: Pair, least: int = LEAST, stream: str = "mask"
) -> Bool[Tensor, "M L"]:
    """Mask exactly `counts` patches of each image, in rectangular blocks.

    Blocks have between `least` patches and as many as are left to mask; a side ends at the grid's. They are added until
    `counts` patches are masked: of the last one only as many rows as that takes, from its upper or lower edge. All is computed
    for all images at once, on the CPU: the loop ends when the last image is done. Draws are those of names that begin with
    `stream`.
    """
    height, width = grid
    rows, columns = torch.arange(height), torch.arange(width)
    block = torch.full((len(counts), height, width), BLOCKS)  # number of the first block that has the patch
    unfinished = counts.nonzero()[:, 0]  # (m,)
    left = counts[unfinished]
    for number in range(BLOCKS):
        if not len(unfinished):
            break
        size, aspect, down, across = draws.uniform(f"{stream}_block_{number}", 4)[unfinished].unbind(1)
        smallest = counts[unfinished].clamp(max=least)
        area = smallest + size * (left - smallest).clamp(min=0)
        ratio = (math.log(ASPECT) * (1 - 2 * aspect)).exp()
        high = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top, start = (down * (height - high + 1)).floor(), (across * (width - wide + 1)).floor()
        inside_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])  # (m, gh)
        inside_columns = (columns >= start[:, None]) & (columns < (start + wide)[:, None])  # (m, gw)
        inside = inside_rows[:, :, None] & inside_columns[:, None, :]
        grown = torch.where(inside, block[unfinished].clamp(max=number), block[unfinished])
        block[unfinished] = grown
        left = counts[unfinished] - (grown < BLOCKS).sum(dim=(1, 2))
        unfinished, left = unfinished[left > 0], left[left > 0]
    turned = draws.uniform(f"{stream}_edges", 2)[:, :, None, None] < 0.5
    row = torch.where(turned[:, 0], height - 1 - rows[:, None], rows[:, None])  # (M, gh, 1)
    column = torch.where(turned[:, 1], width - 1 - columns, columns)  # (M, 1, gw)
    place = row * width + column
    if len(unfinished):
        rest = draws.uniform(f"{stream}_rest", height * width).argsort(dim=1).unflatten(1, grid)
        place = torch.where(block == BLOCKS, rest, place)
    order = (block * (height * width) + place).flatten(1).argsort(dim=1)
    chosen = torch.arange(height * width) < counts[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)

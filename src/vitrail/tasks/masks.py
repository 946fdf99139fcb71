"""Masks of patches: random patches, blocks, a grid, and squares of pixels, drawn for each image and all of one count.

A task masks as many patches of each image, so that its loss is a mean over images, however these are shared by processes.
"""

# B batch · gh gw grid · L patches = gh gw · M masked patches · V visible patches = L - M

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.data.block_masks import draw_block_masks
from vitrail.data.draws import Draws
from vitrail.settings import Pair
from vitrail.settings.mae import Masking

Places = Int64[Tensor, "B M"]
Mask = Bool[Tensor, "B L"]

LEAST_BLOCK = 16
"""Patches of a block at least (Bao et al. 2022, algorithm 1); all that are to be masked where these are fewer."""


def masked_count(patches: int, ratio: float) -> int:
    """Return ⌊ratio L⌋, with at least one masked and one visible patch. Raises ValueError for one patch."""
    if patches < 2:
        raise ValueError("masking needs images of at least 2 patches; use a smaller patch or larger images")
    return min(max(1, int(patches * ratio)), patches - 1)


def draw_mask(draws: Draws, *, masking: Masking, grid: Pair, count: int, stream: str) -> Mask:
    """Draw `count` masked patches of each image, on the CPU. Draws are those of names that begin with `stream`."""
    patches = grid[0] * grid[1]
    if masking == "block":
        return draw_block_masks(draws, torch.full((len(draws),), count), grid=grid, least=LEAST_BLOCK, stream=stream)
    ranks = draws.uniform(stream, patches) if masking == "random" else grid_ranks(draws, grid, count, stream)
    return mask_at(ranks.argsort(dim=1, stable=True)[:, patches - count :], patches)


def grid_ranks(draws: Draws, grid: Pair, count: int, stream: str) -> Float[Tensor, "B L"]:
    """Rank patches so that visible ones are spread evenly: one in each cell of k x k patches, k² being L / V, rounded.

    Cells are shifted at random. Where cells have more than one visible patch, or some do, those on a cell's diagonal come
    first. At ratio 0.75 and an even grid one patch of each 2 x 2 is visible (He et al. 2022, figure 6).
    """
    patches = grid[0] * grid[1]
    side = max(2, round(math.sqrt(patches / (patches - count))))
    shift = draws.integers(f"{stream}_shift", high=side, n=2)  # (B, 2)
    row = (torch.arange(grid[0]) + shift[:, :1])[:, :, None] % side  # (B, gh, 1)
    column = (torch.arange(grid[1]) + shift[:, 1:])[:, None] % side  # (B, 1, gw)
    order = (row + column) % side * side + row  # (B, gh, gw): 0 … k² - 1
    return order.flatten(1) + draws.uniform(stream, patches)


def square_of(grid: Pair, patch: Pair, *, side_px: int) -> Pair:
    """Return the rows and columns of patches of a masked square of at most `side_px` pixels a side.

    Squares are whole patches, one at least, and divide the grid into at least two where it has as many.
    """

    def largest(patches: int, patch_px: int) -> int:
        fits = [n for n in range(1, patches // 2 + 1) if patches % n == 0 and n * patch_px <= side_px]
        return max(fits, default=1)

    return largest(grid[0], patch[0]), largest(grid[1], patch[1])


def draw_squares(draws: Draws, *, grid: Pair, square: Pair, ratio: float, stream: str) -> Mask:
    """Draw the masked patches of each image: those of ⌈ratio n⌉ of its n squares, with at least one square visible."""
    rows, columns = grid[0] // square[0], grid[1] // square[1]
    masked_count(rows * columns, ratio)  # which requires two
    count = min(math.ceil(rows * columns * ratio), rows * columns - 1)
    chosen = draw_mask(draws, masking="random", grid=(rows, columns), count=count, stream=stream).unflatten(1, (rows, columns))
    return chosen.repeat_interleave(square[0], 1).repeat_interleave(square[1], 2).flatten(1)


def mask_at(places: Places, patches: int) -> Mask:
    """Return the mask that is True at these places."""
    return torch.zeros(len(places), patches, dtype=torch.bool, device=places.device).scatter(1, places, True)


def places_of(mask: Mask) -> Places:
    """Return the places where a mask is True, as many for each image, sorted."""
    return mask.nonzero()[:, 1].unflatten(0, (len(mask), -1))

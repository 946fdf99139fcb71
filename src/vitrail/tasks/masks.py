"""Masks of patches: random patches, blocks, a grid, and squares of pixels, drawn for each image and all of one count.

A task masks as many patches of each image, so that its loss is a mean over images, however these are shared by processes.
"""

# B batch · gh gw grid · L patches = gh gw · M masked patches · V visible patches = L - M

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.settings import Pair
from vitrail.settings.mae import Masking

Places = Int64[Tensor, "B M"]
Mask = Bool[Tensor, "B L"]
Ranks = Float[Tensor, "B L"] | Int64[Tensor, "B L"]

LEAST_BLOCK = 16
"""Patches of a block at least (Bao et al. 2022, algorithm 1); all that are to be masked where these are fewer."""
FLATTEST = 0.3
"""Least ratio of a block's height to its width; the greatest is its inverse."""
BLOCKS = 100
"""Blocks that are drawn at most; patches that none of them has reached are then masked at random."""


def masked_count(patches: int, ratio: float) -> int:
    """Return ⌊ratio L⌋, with at least one masked and one visible patch. Raises ValueError for one patch."""
    if patches < 2:
        raise ValueError("masking needs images of at least 2 patches; use a smaller patch or larger images")
    return min(max(1, int(patches * ratio)), patches - 1)


def draw_mask(draws: Draws, *, masking: Masking, grid: Pair, count: int, stream: str) -> Mask:
    """Draw `count` masked patches of each image. Draws are those of `stream`, and of names that begin with it."""
    patches = grid[0] * grid[1]
    ranks = RANKS[masking](draws, grid, count, stream)
    return mask_at(ranks.argsort(dim=1, stable=True)[:, patches - count :], patches)


def random_ranks(draws: Draws, grid: Pair, count: int, stream: str) -> Ranks:
    """Rank patches at random; those of the highest ranks are masked."""
    return draws.uniform(stream, grid[0] * grid[1])


def grid_ranks(draws: Draws, grid: Pair, count: int, stream: str) -> Ranks:
    """Rank patches so that visible ones are spread evenly: one in each cell of k x k patches, k² being L / V, rounded.

    Cells are shifted at random. Where cells have more than one visible patch, or some do, those on a cell's diagonal come
    first. At ratio 0.75 and an even grid one patch of each 2 x 2 is visible (He et al. 2022, figure 6).
    """
    patches = grid[0] * grid[1]
    side = max(2, round(math.sqrt(patches / (patches - count))))
    shift = draws.integers(f"{stream}_shift", high=side, n=2)  # (B, 2)
    device = shift.device
    row = (torch.arange(grid[0], device=device) + shift[:, :1])[:, :, None] % side  # (B, gh, 1)
    column = (torch.arange(grid[1], device=device) + shift[:, 1:])[:, None] % side  # (B, 1, gw)
    order = (row + column) % side * side + row  # (B, gh, gw): 0 … k² - 1
    return order.flatten(1) + draws.uniform(stream, patches)


def block_ranks(draws: Draws, grid: Pair, count: int, stream: str) -> Ranks:
    """Rank patches so that the masked ones are those of random blocks (Bao et al. 2022, algorithm 1).

    Blocks have between `LEAST_BLOCK` patches and as many as are left to mask, and ratios of height to width between 0.3 and
    1 / 0.3, even on a logarithmic scale; a side ends at the grid's. They are added until `count` patches are masked, of the
    last one only as many rows as that takes, from its upper or lower edge.
    """
    height, width = grid
    least = min(LEAST_BLOCK, count)
    corner = draws.uniform(f"{stream}_corner", 2)  # (B, 2)
    device = corner.device
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)  # (gh, 1), (gw,)
    block = torch.full((len(corner), height, width), BLOCKS, device=device)  # number of the first block that has the patch
    unfinished, left = torch.arange(len(corner), device=device), torch.full((len(corner),), count, device=device)
    for number in range(BLOCKS):
        size, shape, down, across = draws.uniform(f"{stream}_block{number}", 4)[unfinished].unbind(1)
        area = least + size * (left - least).clamp(min=0)
        ratio = (math.log(FLATTEST) * (1 - 2 * shape)).exp()
        tall = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top, start = (down * (height - tall + 1)).floor(), (across * (width - wide + 1)).floor()
        top, bottom, start, end = (side[:, None, None] for side in (top, top + tall, start, start + wide))
        inside = (rows >= top) & (rows < bottom) & (columns >= start) & (columns < end)  # (B, gh, gw)
        grown = torch.where(inside, block[unfinished].clamp(max=number), block[unfinished])
        block[unfinished] = grown
        left = count - (grown < BLOCKS).sum(dim=(1, 2))
        unfinished, left = unfinished[left > 0], left[left > 0]
        if not len(unfinished):
            break
    turned = corner[:, :, None, None] < 0.5
    row, column = torch.where(turned[:, 0], height - 1 - rows, rows), torch.where(turned[:, 1], width - 1 - columns, columns)
    patches = height * width
    place = row * width + column  # (B, gh, gw)
    if len(unfinished):
        unreached = draws.uniform(f"{stream}_rest", patches).argsort(dim=1).unflatten(1, grid)
        place = torch.where(block == BLOCKS, unreached, place)
    return -(block * patches + place).flatten(1)


RANKS: dict[Masking, Callable[[Draws, Pair, int, str], Ranks]] = {
    "random": random_ranks,
    "block": block_ranks,
    "grid": grid_ranks,
}


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

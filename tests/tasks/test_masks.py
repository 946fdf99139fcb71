"""Masks: counts, shapes of blocks, grids and squares, and draws keyed by seed, epoch and image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.settings import Pair
from vitrail.tasks.masks import draw_mask, draw_squares, mask_at, masked_count, places_of, square_of

GRIDS = st.tuples(st.integers(1, 14), st.integers(1, 14)).filter(lambda grid: grid[0] * grid[1] > 1)
MASKINGS = ("random", "block", "grid")


def draw(masking: str, grid: Pair, ratio: float, *, images: int = 3, seed: int = 0, epoch: int = 0) -> Tensor:
    draws = Draws(seed=seed, epoch=epoch, indexes=torch.arange(images))
    return draw_mask(draws, masking=masking, grid=grid, count=masked_count(grid[0] * grid[1], ratio), stream="m")


@settings(max_examples=40)
@given(grid=GRIDS, ratio=st.floats(0.01, 0.99), masking=st.sampled_from(MASKINGS), seed=st.integers(0, 9))
def test_each_image_has_the_same_count(grid: Pair, ratio: float, masking: str, seed: int) -> None:
    mask, patches = draw(masking, grid, ratio, seed=seed), grid[0] * grid[1]
    assert mask.sum(dim=1).tolist() == [min(max(1, int(patches * ratio)), patches - 1)] * 3
    places = places_of(mask)
    assert (places.diff(dim=1) > 0).all()
    assert mask_at(places, patches).equal(mask)


@pytest.mark.parametrize("masking", MASKINGS)
def test_a_mask_is_of_seed_epoch_and_image(masking: str) -> None:
    among = draw(masking, (8, 8), 0.4, images=40)
    alone = Draws(seed=0, epoch=0, indexes=torch.tensor([33]))
    assert draw_mask(alone, masking=masking, grid=(8, 8), count=25, stream="m")[0].equal(among[33])
    assert not among.equal(draw(masking, (8, 8), 0.4, images=40, epoch=1))
    assert not among.equal(draw(masking, (8, 8), 0.4, images=40, seed=1))
    assert len({tuple(row) for row in among.tolist()}) > (30 if masking != "grid" else 3)


def test_blocks_are_few_rectangles() -> None:
    """Edges between masked and visible neighbours: as many as rectangles of 16 patches or more have, not as single patches."""
    blocks, single = (draw(masking, (14, 14), 0.4, images=200).unflatten(1, (14, 14)) for masking in ("block", "random"))

    def edges(mask: Tensor) -> float:
        changes = mask.long().diff(dim=1).abs().sum() + mask.long().diff(dim=2).abs().sum()
        return float(changes / len(mask))

    assert edges(blocks) < 45 < 150 < edges(single)


def test_blocks_prefer_no_corner() -> None:
    share = draw("block", (12, 12), 0.4, images=3000).float().mean(dim=0).unflatten(0, (12, 12))
    for turned in (share.flip(0), share.flip(1), share.T):
        assert (share - turned).abs().max() < 5 * math.sqrt(0.5 / 3000)


def test_a_grid_is_one_of_each_square() -> None:
    visible = ~draw("grid", (8, 12), 0.75, images=50).unflatten(1, (8, 12))
    cells = visible.unflatten(1, (4, 2)).unflatten(3, (6, 2)).sum(dim=(2, 4))
    assert (cells == 1).all()
    board = ~draw("grid", (6, 6), 0.5, images=4).unflatten(1, (6, 6))
    assert (board[:, 1:] != board[:, :-1]).all()
    assert (board[:, :, 1:] != board[:, :, :-1]).all()


@settings(max_examples=40)
@given(grid=GRIDS, patch=st.tuples(st.integers(1, 20), st.integers(1, 20)), side_px=st.integers(1, 64))
def test_squares_are_whole_patches(grid: Pair, patch: Pair, side_px: int) -> None:
    square = square_of(grid, patch, side_px=side_px)
    for axis in (0, 1):
        assert grid[axis] % square[axis] == 0
        assert square[axis] == 1 or square[axis] * patch[axis] <= side_px
        assert square[axis] == 1 or grid[axis] // square[axis] >= 2
    draws = Draws(seed=0, epoch=0, indexes=torch.arange(2))
    mask = draw_squares(draws, grid=grid, square=square, ratio=0.6, stream="s").unflatten(1, grid)
    cells = mask.unflatten(2, (-1, square[1])).unflatten(1, (-1, square[0])).float().mean(dim=(2, 4))  # (B, rows, columns)
    assert ((cells == 0) | (cells == 1)).all()
    count = cells[0].numel()
    assert (cells.sum(dim=(1, 2)) == min(math.ceil(0.6 * count), count - 1)).all()


def test_squares_of_the_paper() -> None:
    assert square_of((48, 48), (4, 4), side_px=32) == (8, 8)
    assert square_of((14, 14), (16, 16), side_px=32) == (2, 2)
    assert square_of((7, 7), (4, 4), side_px=32) == (1, 1)
    assert square_of((8, 16), (4, 4), side_px=32) == (4, 8)


def test_one_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^masking needs images of at least 2 patches; use a smaller patch or larger images$"):
        masked_count(1, 0.5)

"""Masks by blocks: exact numbers, keyed by image, and more neighbours than single patches have."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail.data.block_masks import draw_block_masks
from vitrail.data.draws import Draws


def masks(indexes: Tensor, counts: Tensor, grid: tuple[int, int], seed: int = 0) -> Tensor:
    return draw_block_masks(Draws(seed=seed, epoch=0, indexes=indexes), counts, grid=grid)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(0, 99))
def test_as_many_as_asked_for(height: int, width: int, shares: list[float], seed: int) -> None:
    counts = torch.tensor([round(share * height * width) for share in shares])
    mask = masks(torch.arange(len(shares)), counts, (height, width), seed)
    assert mask.shape == (len(shares), height * width)
    assert mask.sum(1).equal(counts)


def test_a_mask_is_of_its_image_and_not_of_the_batch() -> None:
    indexes, counts = torch.arange(20), torch.full((20,), 60)
    whole = masks(indexes, counts, (14, 14))
    assert masks(indexes[7:9], counts[7:9], (14, 14)).equal(whole[7:9])
    assert len({tuple(row.tolist()) for row in whole}) == 20
    assert not masks(indexes, counts, (14, 14), seed=1).equal(whole)


def test_blocks_hold_together() -> None:
    """Share of the masked patches' right neighbours that are masked too: of single patches, what is masked at all."""
    mask = masks(torch.arange(500), torch.full((500,), 49), (14, 14)).unflatten(1, (14, 14))
    pairs = (mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask[:, :, :-1].sum()
    assert pairs > 0.6
    assert mask.any(0).all(), "any patch may be masked"


def test_a_block_has_the_papers_shapes() -> None:
    """Of 24 patches in a block of 24 at least there is one, if rounding lets it: 3 x 8, 4 x 6 and the same turned."""
    draws = Draws(seed=0, epoch=0, indexes=torch.arange(2000))
    mask = draw_block_masks(draws, torch.full((2000,), 24), grid=(14, 14), least=24).unflatten(1, (14, 14))
    tall, wide = mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)
    shapes = dict.fromkeys(((3, 8), (4, 6), (6, 4), (8, 3)), 0)
    for shape in zip(tall.tolist(), wide.tolist(), strict=True):
        if shape[0] * shape[1] == 24:
            shapes[shape] += 1
    assert min(shapes.values()) > 100
    assert abs(shapes[4, 6] - shapes[6, 4]) < 5 * math.sqrt(2000 * 0.15)


def test_nearly_all_patches_and_none() -> None:
    counts = torch.tensor([195, 0, 196, 1])
    mask = masks(torch.arange(4), counts, (14, 14))
    assert mask.sum(1).equal(counts)

"""Pairs that are much closer than the next image: those before a jump in the sorted distances of an image."""

# N images · P pairs · L neighbours

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

JUMP, LOOSE_JUMP = 0.2, 0.5
"""Greatest ratio of a duplicate's distance to that of the next image: seen from one of the two, and from the other."""
_LARGEST_GROUP = 8  # duplicates that one image may have before a jump
_TYPICAL = 0.01  # quantile of the distances of unrelated images, for groups with more duplicates than neighbours
_SMALL = 1e-6


class Jumps(NamedTuple):
    """Which pairs are duplicates."""

    sure: Bool[np.ndarray, " P"]
    possible: Bool[np.ndarray, " P"]
    """Also those that another measure should confirm: before a smaller jump, of one of the two images."""


def before_jump(
    first: Int64[np.ndarray, " P"],
    second: Int64[np.ndarray, " P"],
    distance: Float[np.ndarray, " P"],
    *,
    images: int,
    largest: float,
    unrelated: float,
) -> Jumps:
    """Decide which pairs are duplicates, from the distances of each image to its nearest ones.

    A pair is one if its distance is at most `JUMP` times that of the next image beyond, for one of its images, and
    `LOOSE_JUMP` times for the other; the images between are duplicates too. `unrelated` is the distance of the next image
    where there is none. Pairs at `largest` and beyond are none.
    """
    both = np.arange(len(distance))
    node, pair = np.concatenate([first, second]), np.concatenate([both, both])
    near = np.maximum(distance[pair].astype(np.float64), _SMALL)
    order = np.lexsort((near, node))
    node, pair, near = node[order], pair[order], near[order]
    rank = np.arange(len(node)) - np.searchsorted(node, np.arange(images))[node]
    table = np.full((images, _LARGEST_GROUP + 1), max(unrelated, _SMALL))  # (N, L): distances of the nearest, ascending
    kept = rank <= _LARGEST_GROUP
    table[node[kept], rank[kept]] = near[kept]
    ratio = table[:, :-1] / table[:, 1:]

    def last_jump(limit: float) -> Int64[np.ndarray, " N"]:
        """Return how many of the nearest images of each image are before its last jump."""
        jumps = ratio <= limit
        return np.where(jumps.any(1), jumps.shape[1] - jumps[:, ::-1].argmax(1), 0)

    strict, loose = last_jump(JUMP), last_jump(LOOSE_JUMP)
    claims = np.zeros((2, len(distance)), np.int64)  # how many of its two images hold a pair for a duplicate
    np.add.at(claims[0], pair[rank < strict[node]], 1)
    np.add.at(claims[1], pair[rank < np.maximum(strict, loose)[node]], 1)
    typical = float(np.quantile(table[np.arange(images), strict], _TYPICAL)) if images else 0.0
    by_jump = (claims[0] >= 1) & (claims[1] >= 2)
    near_enough = distance < largest
    sure = near_enough & (by_jump | (distance < JUMP * typical))
    return Jumps(sure, sure | (near_enough & (claims[1] >= 1)))

"""Uniformity of embeddings on the sphere: how evenly directions spread, without labels."""

# N images · E embedding · G groups

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.data.draws import permutation
from vitrail.evaluate.intervals import Interval, mean_interval

MOST_IMAGES = 2000
"""Maximum number of images whose pairs are compared, drawn from all of them."""
GROUPS = 10
"""Number of groups of the jackknife."""
LOWEST = -8.0
"""Least value: all pairs opposite, which more than two images can't be."""
_ROWS = 512  # of the potentials at once


class Uniformity(NamedTuple):
    """Logarithm of the mean potential of pairs: 0 where all directions are one, lower where they spread."""

    value: float
    interval: Interval
    """Interval at 95 %, by a jackknife; the whole range for fewer than two images a group."""


def uniformity(embeddings: Float[Tensor, "N E"], *, level: float = 0.95) -> Uniformity:
    """Compute log E exp(-2 ‖x - y‖²) over pairs of different images, x and y of length 1 (Wang & Isola 2020, equation 4).

    Directions that are uniform on a sphere of many dimensions have about -4, one direction for all images has 0; an embedding
    of zero length stays at the origin. The interval is a jackknife over ten random groups of images (Tukey 1958), with
    Student's t.
    Raises ValueError for fewer than two images and for embeddings that are not finite.
    """
    if len(embeddings) < 2:
        raise ValueError(f"uniformity compares pairs of images, and there are {len(embeddings)} images; give 2 at least")
    if not bool(embeddings.isfinite().all()):
        raise ValueError("the embeddings are not finite; use fp32, or check the weights")
    order = permutation(len(embeddings), seed=0, epoch=0)[:MOST_IMAGES]
    points, group = F.normalize(embeddings[order].double(), dim=1), torch.arange(len(order)) % GROUPS
    lengths = points.square().sum(1)
    sums = torch.zeros(
        GROUPS, GROUPS, dtype=torch.float64
    )  # potentials of the pairs of two groups, without an image and itself
    for first, rows in enumerate(points.split(_ROWS)):
        apart = lengths[first * _ROWS :][: len(rows), None] + lengths - 2 * rows @ points.T  # ‖x - y‖²
        potentials = (-2 * apart.clamp(min=0)).exp()
        places = torch.arange(len(rows)) + first * _ROWS
        potentials[torch.arange(len(rows)), places] = 0
        by_column = torch.zeros(len(rows), GROUPS, dtype=torch.float64).index_add_(1, group, potentials)
        sums.index_add_(0, group[places], by_column)
    total, sizes = float(sums.sum()), group.bincount(minlength=GROUPS)
    value = _log_mean(total, len(points))
    if len(points) < 2 * GROUPS:
        return Uniformity(value, (LOWEST, 0.0))
    without = total - sums.sum(0) - sums.sum(1) + sums.diagonal()
    left_out = [_log_mean(float(rest), len(points) - int(size)) for rest, size in zip(without, sizes, strict=True)]
    low, high = mean_interval([GROUPS * value - (GROUPS - 1) * one for one in left_out], level=level)
    reach = (high - low) / 2
    return Uniformity(value, (max(LOWEST, value - reach), min(0.0, value + reach)))


def _log_mean(total: float, images: int) -> float:
    """Return the logarithm of the mean over the ordered pairs of different images, of which each is e⁻⁸ at least."""
    return math.log(total / (images * (images - 1)))

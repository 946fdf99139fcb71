"""Noise: Gaussian, shot (Poisson) and impulse (salt and pepper)."""

# B batch · C channels · H W image · k counts

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Int64
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.evaluate.corruptions.filters import Images

LEVELS = 256
_BITS = 24
"""Bits of a drawn number, which tables of probabilities are rounded to."""


def gaussian_noise(images: Images, draws: Draws, *, deviation: float) -> Images:
    """Add normal noise to every value."""
    noise = draws.normal("gaussian noise", images[0].numel()).view_as(images)
    return images + deviation * noise


def shot_noise(images: Images, draws: Draws, *, photons: float) -> Images:
    """Replace each value x by a Poisson number of mean x · photons, over photons; x is a multiple of 1/255.

    The number is the smallest whose cumulative probability exceeds a uniform draw, in whole numbers, so that it is the same
    on every device.
    """
    table = poisson_table(photons).to(images.device)  # (256, k)
    uniform = draws.integers("shot noise", high=2**_BITS, n=images[0].numel()).view_as(images)
    level = (images * (LEVELS - 1)).round().long()
    step = 2 ** (_BITS + 1)  # keeps the rows of the table apart, so that one search does for all of them
    rows = torch.arange(LEVELS, device=images.device)[:, None] * step
    found = torch.searchsorted((table + rows).flatten(), uniform + level * step, right=True)
    return (found - level * table.shape[1]).to(images.dtype) / photons


@functools.lru_cache(maxsize=16)
def poisson_table(photons: float) -> Int64[Tensor, "256 k"]:
    """Return the probability of at most 0, 1, 2 … counts for each level, in 2^-24, until all of them are 1."""
    most = photons + 8 * math.sqrt(photons) + 12
    counts = torch.arange(math.ceil(most), dtype=torch.float64)
    means = torch.arange(LEVELS, dtype=torch.float64)[:, None] / (LEVELS - 1) * photons
    table = torch.special.gammaincc(counts + 1, means)  # (256, k)
    return (table * 2**_BITS).round().long()


def impulse_noise(images: Images, draws: Draws, *, share: float) -> Images:
    """Set a share of the values to black or white, with equal probability."""
    uniform = draws.uniform("impulse noise", images[0].numel()).view_as(images)
    return torch.where(uniform < share / 2, 0.0, torch.where(uniform >= 1 - share / 2, 1.0, images))

"""Effective rank of embeddings: the number of dimensions that they use, without labels."""

# N images · E embedding

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.data.draws import permutation
from vitrail.evaluate.intervals import Interval, mean_interval

GROUPS = 10
"""Number of groups of the jackknife."""


def effective_rank(embeddings: Float[Tensor, "N E"]) -> float:
    """Compute exp(-Σ p log p) with p the singular values over their sum: from 1 to min(N, E) (Roy & Vetterli 2007).

    Not centred, as in RankMe (Garrido et al. 2023), where it goes with the accuracy of a linear probe. Embeddings that are
    all zero have rank 1. Raises ValueError without images and for embeddings that are not finite.
    """
    if not len(embeddings):
        raise ValueError("effective rank needs at least 1 embedding; the split is empty or none of its files could be read")
    if not bool(embeddings.isfinite().all()):
        raise ValueError("the embeddings are not finite; use fp32, or check the weights")
    values = torch.linalg.svdvals(embeddings.double())
    total = float(values.sum())
    return float(torch.special.entr(values / total).sum().exp()) if total else 1.0


def effective_rank_interval(embeddings: Float[Tensor, "N E"], *, level: float = 0.95) -> Interval:
    """Compute a confidence interval by a jackknife over ten random groups of images (Tukey 1958), with Student's t.

    No bootstrap: images drawn twice add nothing to the rank, so every resample would have a lower one. Within 1 and min(N, E),
    which is the interval for fewer than two images a group.
    """
    lowest, highest = 1.0, float(max(1, min(embeddings.shape)))
    if len(embeddings) < 2 * GROUPS:
        return lowest, highest
    value, group = effective_rank(embeddings), permutation(len(embeddings), seed=0, epoch=0) % GROUPS
    without = [effective_rank(embeddings[group != number]) for number in range(GROUPS)]
    low, high = mean_interval([GROUPS * value - (GROUPS - 1) * rank for rank in without], level=level)
    reach = (high - low) / 2
    return max(lowest, value - reach), min(highest, value + reach) if math.isfinite(reach) else highest

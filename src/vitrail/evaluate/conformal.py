"""Sets of classes that hold the right one with a chosen probability: split conformal prediction by RAPS."""

# N images · K classes

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

PENALTY, FREE_RANKS = 0.01, 5
"""λ and k of RAPS: each class beyond the first k in rank adds λ to its score."""
STORED = 1000
"""Most order statistics of the scores that are kept."""
_ROWS = 4096  # at once, against the memory of a thousand classes
_DIGITS = 1000  # of a logit, that are hashed
_FACTOR = 2654435761  # 2^32 over the golden ratio (Knuth's multiplicative hash)


def class_scores(
    logits: Float[Tensor, "N K"],
    *,
    temperature: float = 1.0,
    penalty: float = PENALTY,
    free_ranks: int = FREE_RANKS,
    uniform: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "N K"]:
    """Compute the score of each class: Σ of the more probable ones + u p + λ max(0, rank - k); the most probable has rank 1.

    APS (Romano et al. 2020) for λ = 0, with RAPS' penalty (Angelopoulos et al. 2021). u, uniform in [0, 1), is a hash of the
    image's logits unless given, so that an image has the same set at each call.
    """
    probabilities = (logits.double() / temperature).softmax(1)
    ordered, ranks = probabilities.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered
    extra = penalty * (torch.arange(1, logits.shape[1] + 1, device=logits.device) - free_ranks).clamp(min=0)
    share = (hashed_uniform(logits) if uniform is None else uniform.double())[:, None]
    scores = before + share * ordered + extra
    return torch.empty_like(scores).scatter_(1, ranks, scores)


def hashed_uniform(logits: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """Return a number in [0, 1) for each image: a hash of its logits to three digits."""
    digits = (logits.double() * _DIGITS).round().long()
    places = torch.arange(1, logits.shape[1] + 1, device=logits.device)
    return ((digits * places).sum(1) * _FACTOR % 2**32).double() / 2**32


def calibration_scores(
    logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"], *, temperature: float = 1.0
) -> tuple[float, ...]:
    """Return the sorted scores of the right classes of held-out images, thinned to `STORED` order statistics.

    Raises ValueError without images.
    """
    if not len(labels):
        raise ValueError("conformal sets need validation images, and there are none")
    parts = zip(logits.split(_ROWS), labels.split(_ROWS), strict=True)
    right = [class_scores(part, temperature=temperature).gather(1, chosen[:, None])[:, 0] for part, chosen in parts]
    scores = torch.cat(right).sort().values
    if len(scores) > STORED:
        scores = scores[torch.linspace(0, len(scores) - 1, STORED).ceil().long()]
    return tuple(scores.tolist())


def threshold(scores: tuple[float, ...], coverage: float) -> float:
    """Return the ⌈(n + 1) coverage⌉-th of n sorted scores; infinity beyond the last, so that every class is in the set.

    Raises ValueError for a coverage outside of 0 to 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage {coverage} must be above 0 and below 1, such as 0.9")
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return scores[rank - 1] if rank <= len(scores) else math.inf


def prediction_sets(
    logits: Float[Tensor, "N K"], scores: tuple[float, ...], *, coverage: float, temperature: float = 1.0
) -> Bool[Tensor, "N K"]:
    """Return the classes in each image's set. Over images like the held-out ones, `coverage` of the sets hold the right class.

    A set may be empty: where a model is right more often than `coverage`, sets of its least sure answers are.
    """
    most = threshold(scores, coverage)
    parts = [class_scores(part, temperature=temperature) <= most for part in logits.split(_ROWS)]
    return torch.cat(parts) if parts else torch.zeros(logits.shape, dtype=torch.bool)

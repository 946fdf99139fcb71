"""Images unlike the training set: the energy of the logits, its threshold, and how well it separates two sets."""

# N images · K classes

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ACCEPTED = 0.95
"""Share of the validation images that is inside of the threshold."""


def energy(logits: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """Compute -log Σ exp(z), which is higher for images unlike those of training (Liu et al. 2020), at temperature 1."""
    return -logits.double().logsumexp(1)


def outlier_threshold(scores: Float[Tensor, " N"], *, accepted: float = ACCEPTED) -> float:
    """Return the score that the share `accepted` of the validation images does not exceed. Raises ValueError without images."""
    if not len(scores):
        raise ValueError("a threshold needs validation images, and there are none")
    if not bool(scores.isfinite().all()):
        raise ValueError("the model's output is not finite, so there is no threshold; look whether the weights are finite")
    ordered = scores.sort().values
    return float(ordered[min(len(ordered) - 1, int(accepted * len(ordered)))])


def auroc(inside: Float[Tensor, " N"], outside: Float[Tensor, " M"]) -> float:
    """Compute the AUROC: the probability that an outside image has a higher score than an inside one; half of equal ones count.

    Raises ValueError where one of the sets is empty.
    """
    if not len(inside) or not len(outside):
        raise ValueError(f"AUROC needs images in both sets, and they have {len(inside)} and {len(outside)}; give some")
    ordered = inside.double().sort().values
    values = outside.double().contiguous()
    below = torch.searchsorted(ordered, values).double()
    up_to = torch.searchsorted(ordered, values, right=True).double()
    return float((below + up_to).mean() / (2 * len(ordered)))

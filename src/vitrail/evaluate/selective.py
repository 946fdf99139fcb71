"""Selective prediction: the share of images that a model may answer at a chosen precision."""

# N images

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitrail.evaluate.intervals import Interval, wilson_interval


@dataclass(frozen=True)
class SelectivePrediction:
    """The largest set of most confident answers that reaches a precision."""

    target: float
    """Precision that was asked for."""
    count: int
    """Number of answers; 0 where no set reaches the target."""
    share: float
    """Share of the images that is answered."""
    precision: float
    """Precision of these answers; NaN without answers."""
    interval: Interval
    """Wilson interval of the precision, at 95 %."""
    threshold: float
    """Least confidence of an answer; infinity without answers."""


def precision_curve(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"]
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Return confidence, share answered and precision at each of the M different confidences, from the most confident down.

    SplitLogits of equal confidence are given together, or not at all.
    """
    order = torch.argsort(confidence, descending=True, stable=True)
    values, hits = confidence[order].double(), correct[order].double().cumsum(0)
    last = torch.cat([values[1:] != values[:-1], torch.ones(min(1, len(values)), dtype=torch.bool)])  # of equal ones
    counts = torch.arange(1, len(values) + 1, dtype=torch.float64)
    return values[last], counts[last] / max(1, len(values)), hits[last] / counts[last]


def select_at_precision(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], *, precision: float
) -> SelectivePrediction:
    """Return the largest set of the most confident answers whose precision is at least the given one.

    Raises ValueError for no images, a precision outside of 0 to 1, and confidences that are no numbers.
    """
    if not len(confidence):
        raise ValueError("there are no images to be answered; give some")
    if not 0 < precision <= 1:
        raise ValueError(f"precision {precision} must be above 0 and at most 1")
    if bool(confidence.isnan().any()):
        raise ValueError("confidences must be numbers; look whether the model's output is finite")
    values, shares, precisions = precision_curve(confidence, correct)
    reached = (precisions >= precision).nonzero()[:, 0]
    if not len(reached):
        return no_answers(precision)
    at = int(reached[-1])
    count = round(float(shares[at]) * len(confidence))
    hits = round(float(precisions[at]) * count)
    return SelectivePrediction(
        precision, count, float(shares[at]), float(precisions[at]), wilson_interval(hits, count), float(values[at])
    )


def no_answers(precision: float) -> SelectivePrediction:
    """Return the prediction where no set of answers reaches a precision."""
    return SelectivePrediction(precision, 0, 0.0, float("nan"), (0.0, 1.0), float("inf"))


def risk_coverage_area(confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"]) -> float:
    """Compute the mean error over all shares answered, most confident first (AURC: Geifman et al. 2019); lower is better."""
    order = torch.argsort(confidence, descending=True, stable=True)
    counts = torch.arange(1, len(order) + 1, dtype=torch.float64)
    return float((1 - correct[order].double().cumsum(0) / counts).mean())

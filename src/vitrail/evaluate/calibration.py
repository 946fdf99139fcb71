"""Calibration of probabilities: reliability, expected calibration error, Brier score, and a temperature for the logits."""

# N images · K classes · M bins

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.evaluate.intervals import Interval, wilson_interval

BINS = 15
"""Number of bins, as in Guo et al. 2017."""
LEAST_IMAGES = 100
"""Images that a temperature is fitted to at least: that of a few images says more of these than of the model."""
_NORMAL_95 = 1.96
TEMPERATURES = 0.05, 20.0
"""Least and greatest temperature: beyond, all probabilities are 0 and 1, or all equal."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar confidence."""

    count: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share that is correct."""
    interval: Interval
    """Wilson interval of the accuracy, at 95 %."""


def reliability(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], *, bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Return bins of equally many predictions (to within one), from the least to the most confident.

    Raises ValueError for no predictions, fewer than 1 bin, and confidences that are no numbers from 0 to 1.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins; use at least 1")
    if not len(confidence):
        raise ValueError("there are no predictions to be calibrated; give some")
    if not bool(((confidence >= 0) & (confidence <= 1 + 1e-5)).all()):  # of NaN both are False
        raise ValueError("confidences must be numbers from 0 to 1; look whether the model's output is finite")
    order = torch.argsort(confidence, stable=True)
    parts = [part for part in order.tensor_split(min(bins, len(order))) if len(part)]
    found = []
    for part in parts:
        hits, count = int(correct[part].sum()), len(part)
        found.append(ReliabilityBin(count, float(confidence[part].double().mean()), hits / count, wilson_interval(hits, count)))
    return tuple(found)


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Compute the mean distance of accuracy and confidence, over bins of equal mass (Nixon et al. 2019)."""
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.accuracy - each.confidence) for each in bins) / total


def brier_score(probabilities: Float[Tensor, "N K"], labels: Int64[Tensor, " N"]) -> float:
    """Compute the mean over images of Σ (p - y)² over classes, from 0 to 2 (Brier 1950)."""
    targets = F.one_hot(labels, probabilities.shape[1])
    return float((probabilities.double() - targets).square().sum(1).mean())


def top_confidence(
    logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"], *, temperature: float = 1.0
) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Return the probability of each image's most probable class, and whether that class is the right one."""
    logits = logits.double() / temperature
    best = logits.max(1)
    return (best.values - logits.logsumexp(1)).exp(), best.indices == labels


def fit_temperature(logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"]) -> float:
    """Return the temperature with the least negative log-likelihood, within `TEMPERATURES` (Guo et al. 2017).

    The likelihood is concave in 1/T, so the root of its derivative, Σ (E[z] - z of the label), is found by bisection. The
    temperature is 1 for fewer than `LEAST_IMAGES`, where the gain in likelihood is not shown (its 95 % interval over the images
    holds 0: the temperature would be that of the sample), and where the expected calibration error of these images would not
    become less. Raises ValueError without images and for logits that are not finite.
    """
    if not len(logits):
        raise ValueError("a temperature needs images; the validation split is empty")
    if not bool(logits.isfinite().all()):
        raise ValueError("the logits are not finite, so they have no temperature; look whether the weights are finite")
    if len(logits) < LEAST_IMAGES:
        return 1.0
    values = logits.double()
    right = values.gather(1, labels[:, None])[:, 0]

    def slope(log_inverse: float) -> float:
        probabilities = (values * math.exp(log_inverse)).softmax(1)
        return float(((probabilities * values).sum(1) - right).mean())

    low, high = -math.log(TEMPERATURES[1]), -math.log(TEMPERATURES[0])
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    temperature = math.exp(-(low + high) / 2)
    gains = F.cross_entropy(values, labels, reduction="none") - F.cross_entropy(values / temperature, labels, reduction="none")
    if float(gains.mean()) <= _NORMAL_95 * float(gains.std()) / math.sqrt(len(gains)):
        return 1.0
    before, after = (
        expected_calibration_error(reliability(*top_confidence(logits, labels, temperature=each)))
        for each in (1.0, temperature)
    )
    return temperature if after < before else 1.0

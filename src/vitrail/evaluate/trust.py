"""How far a model's probabilities can be trusted: calibration, selective prediction, coverage of sets, outliers."""

# N images · K classes

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.evaluate.calibration import (
    ReliabilityBin,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability,
    top_confidence,
)
from vitrail.evaluate.conformal import calibration_scores, prediction_sets
from vitrail.evaluate.intervals import Accuracy, interval_from, number_from
from vitrail.evaluate.outliers import energy, outlier_threshold
from vitrail.evaluate.selective import SelectivePrediction, no_answers, select_at_precision
from vitrail.models.card import Calibration

COVERAGES = (0.9, 0.95)
"""Coverages whose sets are measured."""
PRECISIONS = (0.95, 0.99)
"""Precisions at which the share of answers is measured."""
ROWS = 4096
"""Images at once, against the memory of a thousand classes in float64."""
UNCALIBRATED = Calibration(images=0)


@dataclass(frozen=True)
class Coverage:
    """Conformal sets of one coverage, measured."""

    target: float
    covered: Accuracy
    """Sets with the right class, out of all."""
    mean_size: float
    """Mean number of classes in a set."""
    empty: float
    """Share of sets without a class."""


@dataclass(frozen=True)
class Trust:
    """Figures of probabilities, after the temperature where the model has one."""

    temperature: float
    error_before: float
    """Expected calibration error at temperature 1."""
    error: float
    """Expected calibration error, in bins of equal mass."""
    nll: float
    """Mean negative log-likelihood of the right class, in nats."""
    brier: float
    """Brier score, from 0 to 2."""
    bins: tuple[ReliabilityBin, ...]
    selective: tuple[SelectivePrediction, ...]
    """Share of images answered at each of `PRECISIONS`."""
    coverages: tuple[Coverage, ...]
    """Sets of each of `COVERAGES`; none without conformal scores."""
    outliers: Accuracy | None
    """Images marked as unlike those of training, out of all; None without a threshold."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON; what is not finite becomes None."""
        values: dict[str, Any] = finite(asdict(self))
        values["coverages"] = [{**finite(asdict(each)), "covered": each.covered.to_dict()} for each in self.coverages]
        values["outliers"] = None if self.outliers is None else self.outliers.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trust:
        """Restore what `to_dict` wrote."""

        def restored(each: Mapping[str, Any]) -> dict[str, Any]:
            return {**each, "interval": interval_from(each["interval"])}

        coverages = [{**each, "covered": Accuracy.from_dict(each["covered"])} for each in values["coverages"]]
        return cls(
            **{name: number_from(values[name]) for name in ("temperature", "error_before", "error", "nll", "brier")},
            bins=tuple(ReliabilityBin(**restored(each)) for each in values["bins"]),
            selective=tuple(
                SelectivePrediction(**restored(each)) if each["count"] else no_answers(each["target"])
                for each in values["selective"]
            ),
            coverages=tuple(Coverage(**each) for each in coverages),
            outliers=None if values["outliers"] is None else Accuracy.from_dict(values["outliers"]),
        )


def finite(value: Any) -> Any:
    """Return a copy of a value for JSON in which numbers that are not finite are None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def calibrate(logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"]) -> Calibration:
    """Fit temperature, conformal scores and outlier threshold to the logits of held-out images.

    Raises ValueError for images without exactly one class.
    """
    if bool((labels < 0).any()):
        raise ValueError("calibration needs one class for each image; these have several labels, or none")
    temperature = fit_temperature(logits, labels)
    return Calibration(
        images=len(labels),
        temperature=temperature,
        conformal_scores=calibration_scores(logits, labels, temperature=temperature),
        outlier_energy=outlier_threshold(energy(logits)),
    )


def measure_trust(logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"], calibration: Calibration | None = None) -> Trust:
    """Measure the probabilities of images with one class each.

    They are those that the model's calibration makes; without one, those at temperature 1.
    """
    known = calibration or UNCALIBRATED
    before = top_confidence(logits, labels)
    confidence, correct = top_confidence(logits, labels, temperature=known.temperature)
    bins = reliability(confidence, correct)
    nll, brier = [], []
    for part, right in zip(logits.split(ROWS), labels.split(ROWS), strict=True):
        scaled = part.double() / known.temperature
        nll.append(float(F.cross_entropy(scaled, right, reduction="sum")))
        brier.append(brier_score(scaled.softmax(1), right) * len(right))
    coverages = []
    for coverage in COVERAGES if known.conformal_scores else ():
        sets = prediction_sets(logits, known.conformal_scores, coverage=coverage, temperature=known.temperature)
        hits, sizes = int(sets.gather(1, labels[:, None]).sum()), sets.sum(1).double()
        coverages.append(
            Coverage(coverage, Accuracy(hits, len(labels)), float(sizes.mean()), float((sizes == 0).double().mean()))
        )
    outliers = None
    if known.outlier_energy is not None:
        outliers = Accuracy(int((energy(logits) > known.outlier_energy).sum()), len(labels))
    return Trust(
        temperature=known.temperature,
        error_before=expected_calibration_error(reliability(*before)),
        error=expected_calibration_error(bins),
        nll=sum(nll) / len(labels),
        brier=sum(brier) / len(labels),
        bins=bins,
        selective=tuple(select_at_precision(confidence, correct, precision=precision) for precision in PRECISIONS),
        coverages=tuple(coverages),
        outliers=outliers,
    )

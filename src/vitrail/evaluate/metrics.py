"""Metrics of logits: accuracy with intervals, likelihood, confusion matrix. Pure functions."""

# N images · K classes

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Interval = tuple[float, float]
TOP = 5
SHARE = "share of images"
"""Unit of a headline that is printed in per cent."""


@dataclass(frozen=True)
class Accuracy:
    """Number of correct predictions out of a number of images."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        """Share of correct predictions; NaN without images."""
        return self.correct / self.count if self.count else math.nan

    @property
    def interval(self) -> Interval:
        """Wilson interval at 95 %."""
        return wilson_interval(self.correct, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        value = self.value if self.count else None
        return {"correct": self.correct, "count": self.count, "accuracy": value, "interval": list(self.interval)}


Direction = Literal["higher", "lower"]


class Headline(NamedTuple):
    """Main score of a run."""

    name: str
    value: float
    interval: Interval


@runtime_checkable
class Scores(Protocol):
    """Interface of scores, whatever the task."""

    @property
    def count(self) -> int:
        """Number of images."""

    @property
    def headline(self) -> Headline:
        """Main score of a run."""

    @property
    def unit(self) -> str:
        """Unit of the headline."""

    @property
    def direction(self) -> Direction:
        """Direction in which values of the headline are better."""

    def figures(self) -> dict[str, float]:
        """Return the scores to log during training."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""


def headline_text(scores: Scores, *, decimals: int) -> tuple[str, str, str, str]:
    """Format name, value and interval of a headline: shares in per cent, others as they are."""
    name, value, (low, high) = scores.headline
    shape = f".{decimals}%" if scores.unit == SHARE else f".{decimals}f"
    return name.replace("_", " "), format(value, shape), format(low, shape), format(high, shape)


@dataclass(frozen=True)
class ClassScore:
    """Accuracy of one class."""

    name: str
    count: int
    """Number of images of the class."""
    accuracy: float
    """Share of them that are predicted correctly; NaN without images."""
    interval: Interval


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of a model on images with one class each. Intervals are Wilson's, at 95 %."""

    count: int
    """Number of images."""
    top1: float
    """Share of images whose class has the greatest logit."""
    top1_interval: Interval
    top5: float
    """Share of images whose class is among the five greatest logits, or among all of fewer than five classes."""
    top5_interval: Interval
    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    per_class: tuple[ClassScore, ...]
    confusion: Int64[Tensor, "K K"]
    """Images of each true class (row) by predicted class (column)."""
    classes: tuple[str, ...]

    @property
    def headline(self) -> Headline:
        """Top-1 accuracy, the main score of a run."""
        return Headline("accuracy", self.top1, self.top1_interval)

    @property
    def unit(self) -> str:
        """Unit of the headline."""
        return SHARE

    @property
    def direction(self) -> Direction:
        """Higher accuracy is better."""
        return "higher"

    def figures(self) -> dict[str, float]:
        """Return the scores to log during training."""
        return {"top1": self.top1, "nll": self.nll}

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON, without the confusion matrix (see `save_confusion`); NaN becomes None."""
        return {
            "count": self.count,
            "top1": self.top1,
            "top1_interval": list(self.top1_interval),
            "top5": self.top5,
            "top5_interval": list(self.top5_interval),
            "nll": self.nll if math.isfinite(self.nll) else None,
            "per_class": [
                {
                    "name": each.name,
                    "count": each.count,
                    "accuracy": each.accuracy if each.count else None,
                    "interval": list(each.interval),
                }
                for each in self.per_class
            ],
        }


class Judged(NamedTuple):
    """Per-image results of logits."""

    predicted: Int64[Tensor, " N"]
    within_top: Bool[Tensor, " N"]
    """True if the true class is among the first five."""
    nll: Float[Tensor, " N"]


def judge(logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"]) -> Judged:
    """Compute prediction, top-5 hit and negative log-likelihood of each image, in float32 whatever the logits' type."""
    logits = logits.float()
    return Judged(
        predicted=logits.topk(1).indices[:, 0],  # as topk_correct breaks ties
        within_top=topk_correct(logits, labels, k=TOP),
        nll=F.cross_entropy(logits, labels, reduction="none"),
    )


def summarise(judged: Judged, labels: Int64[Tensor, " N"], *, classes: Sequence[str]) -> Evaluation:
    """Compute the scores of a data set from per-image results."""
    count = len(labels)
    if not count:
        raise ValueError("there are no images to evaluate; the split is empty or none of its files could be read")
    matrix = confusion_matrix(judged.predicted, labels, num_classes=len(classes))
    hits, top_hits = int(matrix.trace()), int(judged.within_top.sum())
    scores = []
    for name, correct, total in zip(classes, matrix.diag().tolist(), matrix.sum(1).tolist(), strict=True):
        accuracy = correct / total if total else math.nan
        scores.append(ClassScore(name, total, accuracy, wilson_interval(correct, total)))
    return Evaluation(
        count=count,
        top1=hits / count,
        top1_interval=wilson_interval(hits, count),
        top5=top_hits / count,
        top5_interval=wilson_interval(top_hits, count),
        nll=float(judged.nll.double().mean()),
        per_class=tuple(scores),
        confusion=matrix,
        classes=tuple(classes),
    )


def score(logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"], *, classes: Sequence[str]) -> Evaluation:
    """Compute the scores of all logits at once."""
    return summarise(judge(logits, labels), labels, classes=classes)


def topk_correct(logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"], *, k: int) -> Bool[Tensor, " N"]:
    """Return whether the true class is among the k greatest logits; k beyond the number of classes takes all."""
    best = logits.topk(min(k, logits.shape[1])).indices  # (N, k)
    return (best == labels[:, None]).any(1)


def confusion_matrix(predicted: Int64[Tensor, " N"], labels: Int64[Tensor, " N"], *, num_classes: int) -> Int64[Tensor, "K K"]:
    """Count images of each true class (row) by predicted class (column), on the CPU."""
    cells = (labels * num_classes + predicted).cpu()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def wilson_interval(correct: int, total: int, *, level: float = 0.95) -> Interval:
    """Compute the interval of a share (Wilson 1927), which is valid near 0 and 1 too. (0, 1) without images."""
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} is no share; correct must be between 0 and the total")
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level} must be above 0 and below 1")
    if total == 0:
        return 0.0, 1.0
    return share_interval(correct / total, total, level=level)


def share_interval(share: float, cases: float, *, level: float = 0.95) -> Interval:
    """Compute Wilson's interval of a share of `count` independent cases, which need not be a whole number."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    spread = z * z / cases
    middle = (share + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(share * (1 - share) / cases + spread / (4 * cases))
    low = 0.0 if share == 0 else max(0.0, middle - reach)  # exactly the end, not 1e-17 beside it
    return low, 1.0 if share == 1 else min(1.0, middle + reach)


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Compute the interval of a mean by Student's t (1908); infinite bounds for fewer than two values."""
    if len(values) < 2:
        return -math.inf, math.inf
    middle = fmean(values)
    reach = t_quantile(level, len(values) - 1) * stdev(values, middle) / math.sqrt(len(values))
    return middle - reach, middle + reach


def t_quantile(level: float, freedom: int) -> float:
    """Compute the t that lies within ± with probability `level`, by bisection (Abramowitz and Stegun, 26.7.3)."""

    def within(angle: float) -> float:
        cosine, odd = math.cos(angle), freedom % 2
        term, total = (cosine if odd else 1.0), 0.0
        for power in range(odd, freedom - 1, 2):
            total += term
            term *= cosine * cosine * (power + 1) / (power + 2)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)

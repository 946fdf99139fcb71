"""Metrics of logits: accuracy with intervals, likelihood, confusion matrix. Pure functions."""

# N images · K classes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.evaluate.f1 import macro_f1, macro_f1_interval
from vitrail.evaluate.intervals import Interval, interval_from, number_from, wilson_interval
from vitrail.evaluate.predictions import ClassPredictions
from vitrail.evaluate.trust import Trust

TOP = 5
SHARE = "share of images"
"""Unit of a headline that is printed in per cent."""


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
    trust: Trust | None = None
    """Calibration, selective prediction and sets; None where they were not measured."""
    predictions: ClassPredictions | None = None
    """Predictions image by image; None where they were not kept."""

    @cached_property
    def macro_f1(self) -> float:
        """Mean F1 of the classes."""
        return macro_f1(self.confusion)

    @cached_property
    def macro_f1_interval(self) -> Interval:
        """Interval of the macro F1 at 95 %, by the bootstrap over images."""
        return macro_f1_interval(self.confusion)

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
            "macro_f1": self.macro_f1,
            "macro_f1_interval": list(self.macro_f1_interval),
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
            **({} if self.trust is None else {"trust": self.trust.to_dict()}),
        }

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, confusion: Int64[Tensor, "K K"], predictions: ClassPredictions | None
    ) -> Evaluation:
        """Restore what `to_dict` wrote, with the confusion matrix and the predictions from their own files."""
        per_class = tuple(
            ClassScore(each["name"], each["count"], number_from(each["accuracy"]), interval_from(each["interval"]))
            for each in values["per_class"]
        )
        return cls(
            count=values["count"],
            top1=values["top1"],
            top1_interval=interval_from(values["top1_interval"]),
            top5=values["top5"],
            top5_interval=interval_from(values["top5_interval"]),
            nll=number_from(values["nll"]),
            per_class=per_class,
            confusion=confusion,
            classes=tuple(each.name for each in per_class),
            trust=Trust.from_dict(values["trust"]) if "trust" in values else None,
            predictions=predictions,
        )


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

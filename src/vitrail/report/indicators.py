"""Numbers of a run that the advice of a report follows from. Pure functions of its facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean

from vitrail.evaluate.intervals import Accuracy, Interval
from vitrail.evaluate.metrics import SHARE, Evaluation
from vitrail.report.choice import ConfusedPair, confused_pairs
from vitrail.report.facts import RunFacts
from vitrail.weights.run_log import Records, points

LAST = 0.2
"""Last part of a run, over which its score is still rising or not."""
LEAST_OF_A_PAIR = 5
"""Images below which a pair of classes is not called confused."""
RISE_STEPS = 2
"""Evaluations within the last part that a rise takes, at least."""


@dataclass(frozen=True, kw_only=True)
class Indicators:
    """What rules look at. Empty and None: not known, or not of this task."""

    train_counts: Mapping[str, int] = field(default_factory=dict)
    """Training images of each class."""
    test_counts: Mapping[str, int] = field(default_factory=dict)
    """Scored images of each class."""
    score_interval: Interval | None = None
    """Interval of the main score, where that is a share."""
    accuracy: float | None = None
    recall: Mapping[str, Interval] = field(default_factory=dict)
    """Interval of the accuracy of each class."""
    pairs: Mapping[str, float] = field(default_factory=dict)
    """Confused pairs, "cat as dog", with their share of the true class."""
    over_confidence: float | None = None
    """Mean confidence minus accuracy; below 0, the model is less sure than it might be."""
    confidence_noise: float = 0.0
    """Half of the interval of the accuracy: a difference below it may be chance."""
    gap: float | None = None
    """Accuracy on augmented training images minus that on validation images, at the end."""
    rise: float | None = None
    """Validation score at the end minus that at four fifths of the run."""
    outliers: Interval | None = None
    """Interval of the share of images marked as unlike those of training."""
    coverage: Mapping[str, float] = field(default_factory=dict)
    """For each coverage asked for: what is missing to it at the upper end of the measured interval."""
    over_probe: float | None = None
    """Accuracy minus that of the linear probe on the same images."""
    skipped: int = 0
    """Files that could not be read."""
    corruptions: Mapping[str, float] = field(default_factory=dict)
    """What each corruption costs, as a share of images."""


def compute_indicators(facts: RunFacts) -> Indicators:
    """Return the numbers of a run."""
    scores, counts = facts.classified, facts.provenance.class_counts
    found = Indicators(
        train_counts=dict(zip(facts.info.classes, counts, strict=True)) if len(counts) == len(facts.info.classes) else {},
        score_interval=facts.scores.headline.interval if facts.scores.unit == SHARE else None,
        rise=late_rise(facts.records, "val_top1" if scores is not None else f"val_{main_figure(facts)}"),
        skipped=facts.skipped,
        corruptions=corruption_losses(facts),
    )
    return found if scores is None else with_classes(found, facts, scores)


def with_classes(indicators: Indicators, facts: RunFacts, scores: Evaluation) -> Indicators:
    """Add the numbers of a run on images with one class each."""
    trust, (low, high) = scores.trust, scores.top1_interval
    pairs = confused_pairs(scores.confusion, most=len(scores.classes) ** 2, least=LEAST_OF_A_PAIR)
    found = replace(
        indicators,
        test_counts={each.name: each.count for each in scores.per_class},
        accuracy=scores.top1,
        recall={each.name: each.interval for each in scores.per_class if each.count},
        pairs={pair_words(pair, scores.classes): pair.share for pair in pairs},
        gap=train_gap(facts.records),
        confidence_noise=(high - low) / 2,
        over_probe=over_probe(facts, scores),
    )
    if trust is None:
        return found
    confidence = sum(each.count * each.confidence for each in trust.bins) / max(1, sum(each.count for each in trust.bins))
    return replace(
        found,
        over_confidence=confidence - scores.top1,
        coverage={percent_words(each.target): each.target - each.covered.interval[1] for each in trust.coverages},
        outliers=None if trust.outliers is None else trust.outliers.interval,
    )


def corruption_losses(facts: RunFacts) -> dict[str, float]:
    """Return what each corruption costs; empty where none was measured."""
    found = facts.robustness
    return {} if found is None else {name: found.loss(name) for name in found.corruptions}


def main_figure(facts: RunFacts) -> str:
    """Return the name of the main score in the log."""
    return {"mAP": "map"}.get(facts.scores.headline.name, facts.scores.headline.name)


def pair_words(pair: ConfusedPair, classes: tuple[str, ...]) -> str:
    """Return the words for a confused pair."""
    return f"{classes[pair.true]} as {classes[pair.predicted]}"


def percent_words(share: float) -> str:
    """Return a coverage in per cent."""
    return f"{100 * share:g} %"


def train_gap(records: Records) -> float | None:
    """Return the training accuracy over the last tenth of the run minus the last validation accuracy; None without either."""
    train, validation = points(records, "accuracy"), points(records, "val_top1")
    if not train or not validation:
        return None
    late = [value for step, value in train if step >= 0.9 * train[-1][0]]
    return fmean(late) - validation[-1][1]


def late_rise(records: Records, name: str) -> float | None:
    """Return the last value of a score minus the best one before the last part of the run; None for too few evaluations.

    A score that was higher before gives no rise, however it moved in between.
    """
    values = points(records, name)
    if len(values) < RISE_STEPS:
        return None
    last = values[-1]
    before = [value for step, value in values if step <= (1 - LAST) * last[0]]
    rise = last[1] - max(before) if before else math.nan
    return rise if math.isfinite(rise) else None


def over_probe(facts: RunFacts, scores: Evaluation) -> float | None:
    """Return the accuracy minus that of the linear probe on the same split; None where no probe was run on it."""
    probe = (facts.ladder or {}).get("probe") or {}
    measured = probe.get(facts.evaluation.split)
    return None if not measured or not measured.get("count") else scores.top1 - Accuracy.from_dict(measured).value

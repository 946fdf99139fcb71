"""Choice of images to show: worst errors, least sure predictions, and examples of the most confused pairs. Pure functions."""

# K classes · N images

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from vitrail.evaluate.intervals import Interval, wilson_interval
from vitrail.evaluate.predictions import ClassPredictions, WorstLabels

ERRORS, UNSURE, PAIRS, OF_A_PAIR = 6, 6, 8, 4
"""Worst errors, least sure predictions, confused pairs, and examples of each pair."""


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that are taken for another."""

    true: int
    predicted: int
    count: int
    """Images of the true class that are predicted as the other."""
    total: int
    """Images of the true class."""

    @property
    def share(self) -> float:
        """Share of the true class."""
        return self.count / self.total

    @property
    def interval(self) -> Interval:
        """Wilson interval of the share at 95 %."""
        return wilson_interval(self.count, self.total)


@dataclass(frozen=True)
class Choice:
    """Rows of the predictions to show."""

    errors: tuple[int, ...]
    """Wrong predictions, the most confident first."""
    unsure: tuple[int, ...] = ()
    """Predictions of the least confidence, right or wrong, the least first."""
    pairs: tuple[tuple[int, ...], ...] = ()
    """Examples of each confused pair, in the order of `confused_pairs`, the most confident first."""

    @property
    def explained(self) -> tuple[int, ...]:
        """Rows whose predictions are explained by a map."""
        return tuple(dict.fromkeys((*self.errors, *self.unsure)))

    @property
    def rows(self) -> tuple[int, ...]:
        """All rows, each once."""
        return tuple(dict.fromkeys((*self.explained, *(row for pair in self.pairs for row in pair))))


def confused_pairs(confusion: Int64[Tensor, "K K"], *, most: int = PAIRS, least: int = 1) -> tuple[ConfusedPair, ...]:
    """Return the largest off-diagonal cells of at least `least` images, by count, then by share of the class."""
    wrong, totals = confusion.clone().fill_diagonal_(0), confusion.sum(1)
    cells = [(true, predicted) for true, predicted in wrong.nonzero().tolist() if wrong[true, predicted] >= least]
    pairs = [ConfusedPair(true, other, int(wrong[true, other]), int(totals[true])) for true, other in cells]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.true, pair.predicted))[:most])


def choose_examples(predictions: ClassPredictions, confusion: Int64[Tensor, "K K"]) -> Choice:
    """Choose the images to show."""
    by_confidence = predictions.confidence.argsort(descending=True, stable=True)
    wrong = by_confidence[~predictions.correct[by_confidence]]
    errors = wrong[:ERRORS].tolist()
    unsure = [row for row in by_confidence.flip(0).tolist() if row not in errors][:UNSURE]
    pairs = []
    for pair in confused_pairs(confusion):
        of_pair = (predictions.labels[wrong] == pair.true) & (predictions.predicted[wrong] == pair.predicted)
        pairs.append(tuple(wrong[of_pair][:OF_A_PAIR].tolist()))
    return Choice(tuple(errors), tuple(unsure), tuple(pairs))


def choose_labels(predictions: WorstLabels) -> Choice:
    """Choose the images whose worst label is farthest from right, of those that are on the wrong side of 50 %."""
    order = predictions.error.argsort(descending=True, stable=True)
    return Choice(tuple(order[predictions.error[order] > 0.5][:ERRORS].tolist()))

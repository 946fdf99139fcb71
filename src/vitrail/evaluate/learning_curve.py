"""Learning curve: accuracy over the share of the training images, and what the last doubling of them brought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from vitrail.evaluate.intervals import Interval
from vitrail.evaluate.paired import Paired, compare_groups
from vitrail.evaluate.trust import finite


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy of runs on parts of the training images."""

    where: str
    """Other settings of the runs, such as "model.depth=6"; "" where all are the same."""
    accuracies: Mapping[float, tuple[float, ...]]
    """Accuracy of each seed, by the share of the training images, in ascending order."""
    doubling: tuple[float, float]
    """The two shares that are compared: the greatest, and that which is nearest to its half."""
    gain: float
    """Mean accuracy at the greater share minus that at the smaller one."""
    interval: Interval
    """Interval of the gain at 95 %: Welch's t over the seeds, or of one seed each a bootstrap over the images."""
    over: str
    """What the interval is over: "3 seeds", or "the images, of one seed"."""

    @property
    def conclusion(self) -> str:
        """Return what the curve shows, as a sentence."""
        small, large = (f"{100 * share:g} %" for share in self.doubling)
        low, high = (f"{100 * end:+.2f}" for end in self.interval)
        change = f"{100 * self.gain:+.2f} points of accuracy (95 % interval {low} to {high}, over {self.over})"
        meaning = "no gain is shown: more images of this kind may not help"
        if self.interval[0] > 0:
            meaning = "more images of this kind would help"
        elif self.interval[1] < 0:
            meaning = "more images made it worse: look at the labels of those that were added, or train longer"
        return f"{self.where + ': ' if self.where else ''}from {small} to {large} of the training images: {change}; {meaning}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        points = [{"fraction": share, "accuracies": list(values)} for share, values in self.accuracies.items()]
        values = {"where": self.where, "points": points, "doubling": list(self.doubling), "gain": self.gain}
        numbers: dict[str, Any] = finite({**values, "interval": list(self.interval), "over": self.over})
        return numbers | {"conclusion": self.conclusion}


def last_doubling(shares: Sequence[float]) -> tuple[float, float]:
    """Return the greatest share and, before it, that which is nearest to its half. Raises ValueError for less than two."""
    if len(shares) < 2:
        raise ValueError(f"{len(shares)} share of the images makes no learning curve; give at least two")
    *others, most = sorted(shares)
    return min(others, key=lambda share: abs(math.log2(most / share) - 1)), most


def learning_curve(
    accuracies: Mapping[float, Sequence[float]], where: str = "", *, paired: Paired | None = None
) -> LearningCurve:
    """Return the curve of runs, whose accuracies are given by share of the training images.

    `paired` is the comparison of the two runs of the last doubling on the same images, which is used where they have one seed.
    """
    small, large = last_doubling(list(accuracies))
    seeds = min(len(accuracies[small]), len(accuracies[large]))
    ordered = {share: tuple(accuracies[share]) for share in sorted(accuracies)}
    if seeds < 2 and paired is not None:
        return LearningCurve(where, ordered, (small, large), paired.difference, paired.interval, "the images, of one seed")
    found = compare_groups(accuracies[small], accuracies[large])
    assert math.isclose(found.difference, fmean(accuracies[large]) - fmean(accuracies[small]), abs_tol=1e-12)
    return LearningCurve(where, ordered, (small, large), found.difference, found.interval, f"{seeds} seeds")

"""Plot of a sweep: the accuracy of each run, and mean and interval over the seeds of each combination."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vitrail.evaluate.intervals import mean_interval
from vitrail.text import printable
from vitrail.weights.run_folder import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitrail.train.sweep import CombinationScores

PICTURE = "sweep.png"
LOGARITHMIC = 8
"""Ratio of the greatest to the least value from which on an axis is logarithmic."""
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000")  # Okabe & Ito 2008
Scores = Sequence["CombinationScores"]


def save_sweep_figure(scores: Scores, folder: Path) -> Path:
    """Write sweep.png into a folder. Return its path."""
    with write_atomically(folder / PICTURE) as draft:
        draw_sweep(scores).savefig(draft, dpi=120, format="png")
    return folder / PICTURE


def draw_sweep(scores: Scores) -> Figure:
    """Draw curves over the values of the first setting whose values are numbers; without one, a row for each combination."""
    from matplotlib.figure import Figure  # whose import takes a second

    keys = list(scores[0].combination.values)
    numeric = [key for key in keys if all(is_number(each.combination.values[key]) for each in scores)]
    numeric = [key for key in numeric if len({each.combination.values[key] for each in scores}) > 1]
    height = 4.0 if numeric else 1.2 + 0.32 * len(scores)
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.add_subplot()
    if numeric:
        draw_curves(axes, scores, numeric[0])
    else:
        draw_rows(axes, scores)
    axes.set_title("Accuracy of each run, mean over seeds and its 95 % interval", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def is_number(value: Any) -> bool:
    """Return True for a value of a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def interval_of(accuracies: Sequence[float]) -> tuple[float, float]:
    """Return the interval of a mean within 0 to 1; the mean itself for one seed."""
    mean, (low, high) = fmean(accuracies), mean_interval(accuracies)
    return (max(0.0, low), min(1.0, high)) if math.isfinite(low) else (mean, mean)


def draw_curves(axes: Axes, scores: Scores, key: str) -> None:
    """Draw a curve over the values of a setting for each combination of the others."""
    lines: dict[str, list[CombinationScores]] = {}
    for each in scores:
        others = ", ".join(f"{name}={value}" for name, value in each.combination.values.items() if name != key)
        lines.setdefault(others, []).append(each)
    for (label, points), color in zip(lines.items(), cycle(COLORS), strict=False):
        points.sort(key=lambda each: float(each.combination.values[key]))
        places = [float(each.combination.values[key]) for each in points]
        low, high = zip(*(interval_of(each.accuracies) for each in points), strict=True)
        axes.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
        axes.plot(places, [fmean(each.accuracies) for each in points], color=color, linewidth=1.4, label=printable(label))
        for place, each in zip(places, points, strict=True):
            axes.plot([place] * len(each.accuracies), each.accuracies, "o", color=color, markersize=3)
    values = [float(each.combination.values[key]) for each in scores]
    if min(values) > 0 and max(values) / min(values) >= LOGARITHMIC:
        axes.set_xscale("log")
    axes.set_xlabel(key, fontsize=9)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)


def draw_rows(axes: Axes, scores: Scores) -> None:
    """Draw a row for each combination."""
    for row, each in enumerate(scores):
        low, high = interval_of(each.accuracies)
        axes.plot([low, high], [row, row], color=COLORS[0], linewidth=5, alpha=0.2, solid_capstyle="butt")
        axes.plot(each.accuracies, [row] * len(each.accuracies), "o", color=COLORS[0], markersize=3)
        axes.plot([fmean(each.accuracies)], [row], "|", color=COLORS[0], markersize=12, markeredgewidth=1.6)
    names = [printable(", ".join(f"{key}={value}" for key, value in each.combination.values.items())) for each in scores]
    axes.set_yticks(range(len(scores)), names, parse_math=False)
    axes.margins(y=0.5 / len(scores))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.1%}")

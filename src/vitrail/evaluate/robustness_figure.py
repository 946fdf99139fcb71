"""Robustness as a picture: accuracy of every corruption and severity, and the curves of the sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitrail.weights.run_folder import write_atomically

if TYPE_CHECKING:
    from vitrail.evaluate.robustness import ConditionAccuracy, Robustness

PICTURE = "robustness.png"
LABELS = {"rotation": "degrees", "scale": "size, of its own", "jpeg": "quality", "input size": "size, of the model's own"}
"""What the values of each sweep are."""


def save_robustness_figure(result: Robustness, folder: str | Path) -> Path:
    """Write robustness.png into a folder that exists. Return its path."""
    path = Path(folder, PICTURE)
    with write_atomically(path) as draft:
        draw_robustness(result).savefig(draft, dpi=120, format="png")
    return path


def draw_robustness(result: Robustness) -> Figure:
    """Draw a table of corruptions by severity in shades, and one plot for each sweep, with 95 % intervals."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.5, 1, 1))
    draw_corruptions(figure.add_subplot(grid[:, 0]), result)
    for place, (name, measured) in enumerate(result.sweeps.items()):
        draw_sweep(figure.add_subplot(grid[place // 2, 1 + place % 2]), name, measured, clean=result.clean.value)
    return figure


def draw_corruptions(axes: Axes, result: Robustness) -> None:
    """Draw the accuracy of each corruption (row) and severity (column)."""
    rows = [[each.accuracy.value for each in measured] for measured in result.corruptions.values()]
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            color = "white" if value > 0.6 else "0.15"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(rows)), list(result.corruptions))
    axes.set_xticks(range(len(rows[0])), [str(each.value) for each in next(iter(result.corruptions.values()))])
    axes.set_xlabel("severity", fontsize=9)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    title = f"Accuracy in % on {result.images:,} images; as they are: {100 * result.clean.value:.0f}"
    axes.set_title(title, fontsize=10, loc="left")


def draw_sweep(axes: Axes, name: str, measured: tuple[ConditionAccuracy, ...], *, clean: float) -> None:
    """Draw accuracy over the values of a sweep, beside that of the unchanged images."""
    values = [each.value for each in measured]
    low, high = zip(*(each.accuracy.interval for each in measured), strict=True)
    axes.axhline(clean, color="0.6", linewidth=0.8, linestyle=(0, (3, 2)))
    axes.fill_between(values, low, high, color="#0072b2", alpha=0.15, linewidth=0)
    axes.plot(values, [each.accuracy.value for each in measured], color="#0072b2", linewidth=1.4, marker="o", markersize=3)
    axes.set_title(name.capitalize() if name != "jpeg" else "JPEG", fontsize=10, loc="left")
    axes.set_xlabel(LABELS[name], fontsize=9)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)

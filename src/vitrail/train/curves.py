"""Curves of a run without labels: loss, learning rate and scores over the steps, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitrail.train.folder import CURVES
from vitrail.weights.run_log import Records, points, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3
"""Plots in a row."""


class Panel(NamedTuple):
    """One plot: its title, and the names of the values that are drawn, with their words in the legend."""

    title: str
    series: Mapping[str, str]


PANELS = (
    Panel("Loss", {"loss": "training"}),
    Panel("Learning rate", {"lr": "learning rate"}),
    Panel("k-NN accuracy", {"val_knn_accuracy": "validation", "check_knn_accuracy": "check"}),
    Panel("Effective rank", {"val_effective_rank": "validation", "check_effective_rank": "check"}),
    Panel("Uniformity, lower is more even", {"val_uniformity": "validation", "check_uniformity": "check"}),
    Panel("Share of the output dimensions in use", {"check_spread": "check"}),
    Panel("Prototypes in use", {"check_prototypes": "check"}),
)


def write_curves(folder: Path) -> Path | None:
    """Write curves.png of a run folder atomically. Return its path; None where nothing is logged yet."""
    records = read_records(folder)
    if not any(points(records, name) for panel in PANELS for name in panel.series):
        return None
    from vitrail.explain import plots  # matplotlib's import takes a second

    return plots.save(draw_curves(records), folder / CURVES)


def draw_curves(records: Records) -> Figure:
    """Draw a plot for each kind of value that the records have. The values of a name are joined by a line."""
    from matplotlib.figure import Figure

    shown = [panel for panel in PANELS if any(points(records, name) for name in panel.series)]
    across, down = min(ACROSS, len(shown)), -(-len(shown) // ACROSS)
    figure = Figure(figsize=(4.2 * across, 3.2 * down), layout="constrained")
    for place, panel in enumerate(shown, start=1):
        draw_panel(figure.add_subplot(down, across, place), panel, records)
    return figure


def draw_panel(axes: Axes, panel: Panel, records: Records) -> None:
    """Draw one plot."""
    colors = ("#0072b2", "#e69f00")  # distinct for colour-blind readers too (Okabe & Ito 2008)
    for (name, words), color in zip(panel.series.items(), colors, strict=False):
        if line := points(records, name):
            steps, values = zip(*line, strict=True)
            marker = "o" if len(line) < 30 and not name.startswith(("loss", "lr")) else None
            axes.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3, label=words)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if len(panel.series) > 1:
        axes.legend(fontsize=8, frameon=False)

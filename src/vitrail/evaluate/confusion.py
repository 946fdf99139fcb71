"""Confusion matrix as a picture and as a table."""

# K classes

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vitrail.evaluate.metrics import Evaluation
from vitrail.text import printable
from vitrail.weights.run_folder import write_atomically

PICTURE, TABLE = "confusion.png", "confusion.csv"
_COUNTED = 20  # up to this many classes, each cell carries its count
_NAMED = 120  # up to this many classes, each row and column carries its name
_LISTED = 12  # the commonest mistakes beside the picture
_NAME_LENGTH = 22


def save_confusion(evaluation: Evaluation, folder: Path | str) -> tuple[Path, Path]:
    """Write confusion.png and confusion.csv into the folder. Return their paths.

    Rows are true classes, columns predicted ones. The picture's colours are shares of the row, its numbers are counts,
    and beside it stand the commonest mistakes; the table holds the counts.
    """
    folder = Path(folder)
    png, table = folder / PICTURE, folder / TABLE
    matrix = evaluation.confusion.numpy()
    with (
        write_atomically(table) as draft,
        draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,  # names may be no UTF-8
    ):
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *evaluation.classes])
        writer.writerows([name, *row] for name, row in zip(evaluation.classes, matrix.tolist(), strict=True))
    with warnings.catch_warnings(), write_atomically(png) as draft:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the table has the names in full
        _draw(matrix, evaluation).savefig(draft, dpi=120, format="png")
    return png, table


def _draw(matrix: Int[np.ndarray, "K K"], evaluation: Evaluation) -> Figure:
    count = len(matrix)
    names = _shortened(evaluation.classes)
    cell = 0.52 if count <= _COUNTED else max(0.125, 11 / count) if count <= _NAMED else 11 / count  # inches
    side = max(3.2, cell * count)
    letters = 5.5 if _COUNTED < count <= _NAMED else 9
    label = 0.0075 * letters * max(map(len, names)) + 0.15 if count <= _NAMED else 0.45  # inches that a name takes
    below = 0.25 + label * (1.0 if count > _COUNTED else 0.8)
    mistakes = 4.2
    left, top = label + 0.35, 0.55
    width, height = left + side + 0.9 + mistakes, top + side + below + 0.25
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, (below + 0.25) / height, side / width, side / height))
    totals = matrix.sum(1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    image = axes.imshow(
        shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest"
    )  # rare mistakes show
    bar = figure.add_axes(((left + side + 0.15) / width, (below + 0.25) / height, 0.14 / width, side / height))
    ticks = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
    figure.colorbar(image, cax=bar, ticks=ticks, format=lambda share, _: f"{share:.0%}").outline.set_visible(False)
    bar.tick_params(labelsize=8, length=0)
    _name_axes(axes, names, letters=letters)
    if count <= _COUNTED:
        _write_counts(axes, matrix, shares)
    low, high = evaluation.top1_interval
    axes.set_title(
        f"{evaluation.count:,} images, {evaluation.top1:.1%} right (95 % interval {low:.1%} to {high:.1%})",
        fontsize=10,
        loc="left",
    )
    _list_mistakes(figure, matrix, names, left=(left + side + 1.0) / width, top=1 - top / height, line=0.2 / height)
    return figure


def _name_axes(axes: Axes, names: list[str], *, letters: float) -> None:
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    axes.tick_params(length=0, labelsize=letters)
    for spine in axes.spines.values():
        spine.set_color("0.8")
    if len(names) <= _NAMED:
        places = range(len(names))
        axes.set_yticks(places, names, parse_math=False)
        slanted = len(names) <= _COUNTED
        axes.set_xticks(
            places,
            names,
            parse_math=False,
            rotation=45 if slanted else 90,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else "default",
        )


def _write_counts(axes: Axes, matrix: Int[np.ndarray, "K K"], shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.3 else "0.15"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8 if count < 10_000 else 6.5, color=color)


def _list_mistakes(
    figure: Figure, matrix: Int[np.ndarray, "K K"], names: list[str], *, left: float, top: float, line: float
) -> None:
    """List the greatest off-diagonal cells as text."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    rows, columns = np.unravel_index(order, wrong.shape)
    figure.text(left, top, "Commonest mistakes" if wrong.any() else "No mistakes", fontsize=9, weight="bold", va="top")
    place = top - 1.4 * line
    for row, column in zip(rows, columns, strict=True):
        if wrong[row, column]:
            words = f"{wrong[row, column]:>5,} of {matrix[row].sum():,}  {names[row]} → {names[column]}"
            figure.text(left, place, words, fontsize=8, va="top", parse_math=False)
            place -= line


def _shortened(names: Sequence[str]) -> list[str]:
    """Shorten names in the middle, as names differ at both ends; number them if two become equal."""
    half, names = (_NAME_LENGTH - 1) // 2, [printable(name) for name in names]
    short = [name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1 - half]}…{name[-half:]}" for name in names]
    return short if len(set(short)) == len(short) else [f"{index} {name}" for index, name in enumerate(short)]

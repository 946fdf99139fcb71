"""Insertion and deletion curves of methods, beside those of random maps and of shuffled weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitrail.explain.draw import legible
from vitrail.explain.score import Compared, Scores
from vitrail.explain.table import as_words

# distinct for colour-blind readers too (Okabe & Ito 2008)
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000")


def curves(
    methods: Mapping[str, Compared], random: Sequence[Scores], classes: Sequence[str], *, index: int | None = None
) -> Figure:
    """Draw the class's probability as patches change, on one image, or its mean over all.

    Bold: in the order of each method's map; thin and dashed: of its map with shuffled weights; grey: from the lowest to the
    highest of the random maps. The areas stand beside the names. Raises ValueError for an image that does not exist.
    """
    count = len(classes)
    if index is not None and not 0 <= index < count:
        raise ValueError(f"image {index} does not exist; there are images 0 to {count - 1}")
    chosen = slice(None) if index is None else slice(index, index + 1)
    figure = Figure(figsize=(11, 6), layout="constrained")
    subject = f"mean of {count} images" if index is None and count > 1 else classes[index or 0]
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, side, direction in ((left, "insertion", "higher is better"), (right, "deletion", "lower is better")):
        _side(axes, methods, random, side, chosen)
        axes.set_title(f"{side.capitalize()}: {direction}", fontsize=10, loc="left")
        axes.set_xlabel("patches put in" if side == "insertion" else "patches taken out", fontsize=9)
    left.set_ylabel(legible(f"probability, {subject}"), fontsize=9, parse_math=False)
    return figure


def _side(axes: Axes, methods: Mapping[str, Compared], random: Sequence[Scores], side: str, chosen: slice) -> None:
    """Draw the insertion or the deletion curves, with the area under each."""

    def curve(scores: Scores) -> np.ndarray:
        values: np.ndarray = getattr(scores, f"{side}_curves")[chosen].mean(0).numpy()
        return values

    def area(*many: Scores) -> float:
        return float(np.mean([getattr(scores, side)[chosen].mean().item() for scores in many]))

    share = random[0].fractions[chosen].mean(0).numpy()
    chance = np.stack([curve(one) for one in random])
    axes.fill_between(share, chance.min(0), chance.max(0), color="0.85", linewidth=0, label=f"random {area(*random):.2f}")
    for (name, one), color in zip(methods.items(), cycle(_COLORS), strict=False):
        label = f"{as_words(name)} {area(one.scores):.2f} (dashed, with shuffled weights: {area(one.shuffled_scores):.2f})"
        axes.plot(share, curve(one.shuffled_scores), color=color, linewidth=0.8, linestyle=(0, (3, 2)), alpha=0.7)
        axes.plot(share, curve(one.scores), color=color, linewidth=2.0, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12))

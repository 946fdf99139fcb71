"""Plots of a model's statistics: one page with all of them, or each by its name.

Figures are matplotlib objects outside of pyplot, so nothing opens a window and no state is shared; `save` writes them.
"""

# C channels · gh gw grid · h w of a tile

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, PercentFormatter

from vitrail.explain.layer_statistics import OUTLIER, LayerStatistics
from vitrail.weights.run_folder import write_atomically

DPI = 120
_DARK, _MID, _LIGHT, _PALE = "#440154", "#31688e", "#35b779", "0.85"  # viridis, from its dark end, and a grey
_TITLE, _LABEL, _TICK = 10, 9, 8  # points
_THUMBNAILS = 7  # positions down and across, as in figure 7 of Dosovitskiy et al. 2021
_ACROSS = 7  # filters in a row
_TICKS = 14  # on an axis of layers, at most
_LETTERS, _LINES = 76, 36  # of the page's text


def overview(stats: LayerStatistics) -> Figure:
    """Draw every plot on one page, with the comparison of early and late layers."""
    figure = Figure(figsize=(16, 15), layout=_layout())
    figure.suptitle(_headline(stats), fontsize=13, x=0.01, ha="left")
    parts: Any = figure.subfigures(3, 3, wspace=0.03, hspace=0.03, height_ratios=(1, 1, 1.15))
    cells = parts.ravel()
    for cell, panel in zip(cells, _PANELS.values(), strict=False):
        panel.draw(cell, stats)
    _conclusions(cells[len(_PANELS)], stats)
    return figure


def single(stats: LayerStatistics, name: str) -> Figure:
    """Draw one plot. Raises ValueError for an unknown name."""
    if name not in _PANELS:
        raise ValueError(f'plot "{name}" is none of {", ".join(_PANELS)}')
    panel = _PANELS[name]
    figure = Figure(figsize=panel.size, layout=_layout())
    panel.draw(figure, stats)
    figure.suptitle(_headline(stats), fontsize=_TICK, x=0.01, ha="left", color="0.35")
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG or an SVG, by the path's suffix, and return the path. The same figure gives the same bytes.

    Raises ValueError for another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f'"{path.name}" is neither .png nor .svg; name one of them')
    with matplotlib.rc_context({"svg.hashsalt": "vitrail"}), write_atomically(path) as draft:
        figure.savefig(draft, dpi=DPI, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    return path


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)  # inches


def _headline(stats: LayerStatistics) -> str:
    depth, heads = stats.distance.shape
    grid = ", ".join(f"{down}x{across}" for down, across in stats.grids)
    height, width = stats.patch
    words = (
        f"{depth} layer{'s' * (depth > 1)} of {heads} head{'s' * (heads > 1)}",
        f"{stats.images:,} image{'s' * (stats.images > 1)}",
        f"{grid} patches of {height}x{width} px",
    )
    return " · ".join(words)


# --------------------------------------------------------------------------------------------------------------------
# Layer by layer


def _distance(figure: FigureBase, stats: LayerStatistics) -> None:
    axes = _per_head(figure, stats.distance.numpy(), even=stats.even_distance)
    _labelled(axes, "Mean attention distance of each head", "distance [px]")
    side = stats.side
    other = axes.secondary_yaxis("right", functions=(lambda px: np.divide(px, side), lambda n: np.multiply(n, side)))
    other.set_ylabel("distance [patches]", fontsize=_LABEL)
    other.tick_params(labelsize=_TICK)


def _entropy(figure: FigureBase, stats: LayerStatistics) -> None:
    axes = _per_head(figure, stats.entropy.numpy(), even=stats.even_entropy)
    _labelled(axes, "Entropy of the patches' attention, each head", "entropy [bits]")


def _cls_to_patch(figure: FigureBase, stats: LayerStatistics) -> None:
    axes = _per_head(figure, stats.cls_to_patch.numpy(), even=None)
    _labelled(axes, f"Attention on patches, of the {stats.query_name}", "share [%]")
    axes.set_ylim(-0.03, 1.15)  # room for the legend
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def _redundancy(figure: FigureBase, stats: LayerStatistics) -> None:
    heads = stats.distance.shape[1]
    if heads == 1:
        _instead(figure, "Similarity of two heads of a layer", "one head a layer: there is no other to be like")
        return
    axes = figure.subplots()
    pairs = stats.head_similarity.numpy()[:, *np.triu_indices(heads, 1)]  # (layers, pairs)
    places = np.arange(len(pairs))
    axes.vlines(places, pairs.min(1), pairs.max(1), color=_MID, alpha=0.35, linewidth=_thick(len(places)))
    axes.plot(places, pairs.mean(1), "o-", color=_DARK, linewidth=1.2, markersize=4)
    _over_layers(axes, len(pairs))
    _labelled(axes, "Similarity of two heads of a layer: mean, least and most alike", "similarity [1 = the same]")
    axes.set_ylim(-0.03, 1.03)


def _token_norms(figure: FigureBase, stats: LayerStatistics) -> None:
    axes, norms = figure.subplots(), stats.token_norms
    places = np.arange(len(norms.median)) - 1
    share = norms.outliers.numpy()
    bars = axes.twinx()
    bars.bar(places, share, width=0.7, color=_PALE, label=f"outliers: above {OUTLIER:g} x median")
    bars.set_ylim(0, max(0.01, 1.25 * share.max()))
    bars.set_ylabel("share of outliers [%]", fontsize=_LABEL)
    bars.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    bars.tick_params(labelsize=_TICK)
    lines = (("largest", norms.max, _LIGHT), ("99th percentile", norms.p99, _MID), ("median", norms.median, _DARK))
    for name, values, color in lines:
        axes.plot(places, values.numpy(), "o-", color=color, linewidth=1.2, markersize=4, label=name)
    axes.set_zorder(bars.get_zorder() + 1)  # the lines before the bars
    axes.patch.set_visible(False)
    if norms.median.min() > 0:
        axes.set_yscale("log")
        whole = norms.max.max().item() / norms.median.min().item()
        axes.set_ylim(norms.median.min().item() / whole**0.05, norms.max.max().item() * whole**0.45)  # room for the legend
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_locator(LogLocator(subs=range(2, 10) if whole < 6 else (2, 5)))
        axes.yaxis.set_minor_formatter(plain)
        axes.tick_params(which="minor", labelsize=_TICK)
    axes.set_xlim(-1.6, places[-1] + 0.6)
    ticks = _ticks(len(places))
    axes.set_xticks([tick - 1 for tick in ticks], [_stage(tick) for tick in ticks])
    axes.set_xlabel("behind layer (in: before the first)", fontsize=_LABEL)
    _labelled(axes, "Norms of the patch tokens", "norm")
    handles, names = (
        mine + theirs for mine, theirs in zip(axes.get_legend_handles_labels(), bars.get_legend_handles_labels(), strict=True)
    )
    axes.legend(handles, names, fontsize=_TICK, frameon=False, loc="upper left")


def _per_head(figure: FigureBase, values: Float[np.ndarray, "layers heads"], *, even: float | None) -> Axes:
    """Draw a dot for each head of each layer, and a line through the means."""
    axes = figure.subplots()
    layers, heads = values.shape
    places = np.repeat(np.arange(layers), heads)
    axes.scatter(places, values.ravel(), s=max(8, 30 - layers / 2), color=_MID, alpha=0.55, linewidths=0, label="a head")
    axes.plot(np.arange(layers), values.mean(1), "_-", color=_DARK, linewidth=1.2, markersize=9, label="mean of the layer")
    if even is not None:
        axes.axhline(even, color="0.4", linewidth=1, linestyle=":", label="even attention")
        axes.set_ylim(min(0, values.min()), 1.22 * max(even, values.max()))  # room for the legend
    _over_layers(axes, layers)
    axes.legend(fontsize=_TICK, frameon=False, ncols=3, loc="upper left", handletextpad=0.4, columnspacing=1.2)
    return axes


def _over_layers(axes: Axes, layers: int) -> None:
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_xticks(_ticks(layers))
    axes.set_xlabel("layer", fontsize=_LABEL)


def _thick(layers: int) -> float:
    """Return a line width in points."""
    return min(6.0, 160 / layers)


def _labelled(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=_TITLE, loc="left")
    axes.set_ylabel(label, fontsize=_LABEL)
    axes.tick_params(labelsize=_TICK)
    axes.spines["top"].set_visible(False)


# --------------------------------------------------------------------------------------------------------------------
# Heat maps and tiles


def _cka(figure: FigureBase, stats: LayerStatistics) -> None:
    values = stats.cka.numpy()
    if not np.isfinite(values).any():
        _instead(figure, "Linear CKA between layers", "CKA needs four patch tokens")
        return
    axes = figure.subplots()
    image = axes.imshow(values, cmap="magma", vmin=0, vmax=1, origin="lower", interpolation="nearest")
    bar = figure.colorbar(image, cax=axes.inset_axes((1.04, 0, 0.05, 1)))
    bar.set_label("linear CKA [1 = the same]", fontsize=_LABEL)
    bar.ax.tick_params(labelsize=_TICK)
    ticks = _ticks(len(values))
    names = [_stage(tick) for tick in ticks]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set_xlabel("behind layer (in: before the first)", fontsize=_LABEL)
    _labelled(axes, "Linear CKA between the patch tokens of layers", "behind layer")


def _ticks(count: int) -> list[int]:
    return list(range(0, count, math.ceil(count / _TICKS)))


def _stage(index: int) -> str:
    return str(index - 1) if index else "in"


def _filters(figure: FigureBase, stats: LayerStatistics) -> None:
    filters, shares = stats.filters.numpy(), stats.filter_shares.numpy()  # (k, C, h, w)
    count, channels, height, width = filters.shape
    whose = "patch filters" if (height, width) == stats.patch else "first convolution's filters"
    title = f"Principal components of the {whose}"
    if not count:
        _instead(figure, title, "all filters are the same")
        return
    tiles = filters if channels == 3 else filters.mean(1, keepdims=True)
    tiles = tiles / np.maximum(np.abs(tiles).max((1, 2, 3), keepdims=True), 1e-12)
    tiles = np.broadcast_to(tiles, (count, 3, height, width)).transpose(0, 2, 3, 1) / 2 + 0.5  # (k, h, w, 3): 0 is mid-grey
    down, across = math.ceil(count / _ACROSS), min(count, _ACROSS)
    blank = np.ones((down * across - count, height, width, 3))
    axes = figure.subplots()
    axes.imshow(mosaic(np.concatenate([tiles, blank]).reshape(down, across, height, width, 3)), interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("NW")
    colours = "" if channels in (1, 3) else f", mean of {channels} channels"
    axes.set_title(f"{title} ({height}x{width} px{colours})", fontsize=_TITLE, loc="left")
    first = ", ".join(f"{share:.0%}" for share in shares[:4])
    below = f"variance explained: {first}{', …' if count > 4 else ''}; all {count}: {shares.sum():.0%}"
    axes.text(0, -0.03, below, transform=axes.transAxes, fontsize=_TICK, va="top")


def _positions(figure: FigureBase, stats: LayerStatistics) -> None:
    title = "Similarity of position embeddings"
    if stats.positions is None:
        _instead(figure, title, "this model has no position embedding")
        return
    similar = stats.positions.numpy()  # (gh, gw, gh, gw)
    grid = similar.shape[:2]
    rows, columns = (np.unique(np.linspace(0, side - 1, min(side, _THUMBNAILS)).round().astype(int)) for side in grid)
    shown = similar[np.ix_(rows, columns)]  # (r, c, gh, gw)
    picture = mosaic(shown, fill=math.nan)
    axes = figure.subplots()
    image = axes.imshow(picture, cmap="viridis", vmin=min(0.0, float(shown.min())), vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, cax=axes.inset_axes((1.04, 0, 0.05, 1)))
    bar.set_label(f"cosine similarity to all {grid[0]}x{grid[1]} patches", fontsize=_LABEL)
    bar.ax.tick_params(labelsize=_TICK)
    gap = _gap(grid)
    axes.set_yticks([index * (grid[0] + gap) + (grid[0] - 1) / 2 for index in range(len(rows))], [str(row) for row in rows])
    places = [index * (grid[1] + gap) + (grid[1] - 1) / 2 for index in range(len(columns))]
    axes.set_xticks(places, [str(column) for column in columns])
    axes.set_xlabel("column of the patch", fontsize=_LABEL)
    _labelled(axes, title, "row of the patch")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def mosaic(tiles: Float[np.ndarray, "down across h w *rgb"], *, fill: float = 1.0) -> Float[np.ndarray, "_ _ *rgb"]:
    """Lay tiles beside and below each other, with a gap between them."""
    down, across, height, width, *rgb = tiles.shape
    gap = _gap((height, width))
    whole = np.full((down * (height + gap) - gap, across * (width + gap) - gap, *rgb), fill, dtype=tiles.dtype)
    for (row, column), _ in np.ndenumerate(np.empty((down, across))):
        top, left = row * (height + gap), column * (width + gap)
        whole[top : top + height, left : left + width] = tiles[row, column]
    return whole


def _gap(tile: tuple[int, ...]) -> int:
    return max(1, round(max(tile) / 10))


# --------------------------------------------------------------------------------------------------------------------
# Words


def _instead(figure: FigureBase, title: str, why: str) -> None:
    """Write why there is nothing to draw."""
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title, fontsize=_TITLE, loc="left")
    axes.text(0.5, 0.5, why, transform=axes.transAxes, fontsize=_LABEL, ha="center", va="center", color="0.35")


def _conclusions(figure: FigureBase, stats: LayerStatistics) -> None:
    """Write the comparison of early and late layers, and the notes."""
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title("Early and late layers", fontsize=_TITLE, loc="left")
    single_layer = len(stats.distance) < 2
    sentences = ("one layer: there is no early and late",) if single_layer else stats.early_and_late().sentences
    paragraphs = [*sentences, *(f"Note: {note}" for note in stats.notes)]
    words = "\n\n".join(textwrap.fill(one, _LETTERS, break_on_hyphens=False) for one in paragraphs)
    size = _TICK * min(1, _LINES / (words.count("\n") + 1))
    axes.text(0, 0.99, words, transform=axes.transAxes, fontsize=size, va="top", parse_math=False)


class _Panel(NamedTuple):
    draw: Callable[[FigureBase, LayerStatistics], None]
    size: tuple[float, float]  # inches, on a page of its own


_PANELS = {
    "distance": _Panel(_distance, (7, 4.5)),
    "entropy": _Panel(_entropy, (7, 4.5)),
    "cls_to_patch": _Panel(_cls_to_patch, (7, 4.5)),
    "redundancy": _Panel(_redundancy, (7, 4.5)),
    "token_norms": _Panel(_token_norms, (7, 4.5)),
    "cka": _Panel(_cka, (6.2, 5.2)),
    "filters": _Panel(_filters, (7, 4.8)),
    "positions": _Panel(_positions, (6.2, 5.6)),
}


def _alone(name: str) -> Callable[[LayerStatistics], Figure]:
    return lambda stats: single(stats, name)


PLOTS: dict[str, Callable[[LayerStatistics], Figure]] = {"overview": overview} | {name: _alone(name) for name in _PANELS}
"""Each plot by its name."""

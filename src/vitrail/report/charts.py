"""Charts as SVG text that follows the colours of the page: lines, intervals, reliability, histogram, dots. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from vitrail.evaluate.calibration import ReliabilityBin
from vitrail.evaluate.intervals import Interval
from vitrail.report.svg import LETTER, Scale, element, line, path, picture, shortened, text, tick_labels, ticks, widened

WIDTH, HEIGHT = 400, 250
"""Pixels of a chart: a phone shows it at its own size."""
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 14, 44
MOST_POINTS = 300
"""Points of a line: of more, each is the mean of its neighbours."""
NAME_LETTERS = 22


@dataclass(frozen=True)
class Series:
    """Values along an axis, joined by a line."""

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[Interval] = ()
    """Interval of each value, drawn as a band; none without."""
    marks: bool = False
    """Draw a mark at each point."""


@dataclass(frozen=True)
class Axis:
    """Words and form of an axis."""

    name: str
    bounds: tuple[float, float] | None = None
    """Ends of the axis; None takes those of the values."""
    share: bool = False
    """Values are shares, written in per cent."""
    whole: bool = False
    """Values are whole numbers."""


@dataclass(frozen=True)
class IntervalRow:
    """A value with its interval, in a line of its own."""

    name: str
    value: float
    interval: Interval
    note: str = ""
    """At the right end of the line."""


# --------------------------------------------------------------------------------------------------------------------
# Frame


@dataclass(frozen=True)
class Frame:
    """The axes of a chart with their scales."""

    x: Scale
    y: Scale
    drawn: Markup


def frame(x_axis: Axis, y_axis: Axis, xs: Sequence[float], ys: Sequence[float], *, height: float = HEIGHT) -> Frame:
    """Draw axes, grid lines and ticks for values."""
    x_low, x_high = x_axis.bounds or (min(xs), max(xs))
    y_low, y_high = y_axis.bounds or widened(min(ys), max(ys), share=y_axis.share)
    bottom = height - BOTTOM
    x, y = Scale(x_low, x_high, LEFT, WIDTH - RIGHT), Scale(y_low, y_high, bottom, TOP)
    across, up = ticks(x_low, x_high, whole=x_axis.whole), ticks(y_low, y_high, whole=y_axis.whole)
    parts = []
    for value, words in zip(up, tick_labels(up, share=y_axis.share), strict=True):
        parts.append(line(LEFT, y(value), WIDTH - RIGHT, y(value), class_="grid"))
        parts.append(text(LEFT - 6, y(value) + 4, words, anchor="end"))
    for value, words in zip(across, tick_labels(across, share=x_axis.share), strict=True):
        parts.append(line(x(value), bottom, x(value), bottom + 4, class_="axis"))
        parts.append(text(min(x(value), WIDTH - RIGHT - 8), bottom + 17, words, anchor="middle"))
    parts += [
        line(LEFT, bottom, WIDTH - RIGHT, bottom, class_="axis"),
        text((LEFT + WIDTH - RIGHT) / 2, height - 8, x_axis.name, anchor="middle", class_="name"),
    ]
    return Frame(x, y, Markup("").join(parts))


# --------------------------------------------------------------------------------------------------------------------
# Charts


def line_chart(series: Sequence[Series], *, x: Axis, y: Axis, label: str) -> Markup:
    """Draw series as lines; bands are intervals. Several have a legend above them. Empty for series without values."""
    shown = [kept for each in series if (kept := thinned(each)).points]
    if not shown:
        return Markup("")
    xs = [place for each in shown for place, _ in each.points]
    ys = [value for each in shown for _, value in each.points]
    ys += [end for each in shown for ends in each.intervals for end in ends]
    legend = Markup("")
    top = 0.0
    if len(shown) > 1:
        legend, top = draw_legend([each.name for each in shown])
    drawn = frame(x, y, xs, ys)
    parts = [drawn.drawn]
    for number, each in enumerate(shown, start=1):
        places = [(drawn.x(place), drawn.y(value)) for place, value in each.points]
        if each.intervals:
            lower = [(place[0], drawn.y(low)) for place, (low, _) in zip(places, each.intervals, strict=True)]
            upper = [(place[0], drawn.y(high)) for place, (_, high) in zip(places, each.intervals, strict=True)]
            parts.append(path([*upper, *reversed(lower)], class_=f"band c{number}", closed=True))
        parts.append(path(places, class_=f"line c{number}"))
        if each.marks or len(places) == 1:
            parts += [element("circle", cx=a, cy=b, r=3.0, class_=f"dot c{number}") for a, b in places]
    body = element("g", *parts, transform=f"translate(0 {top:g})")
    return picture(WIDTH, HEIGHT + top, legend, body, label=label)


def draw_legend(names: Sequence[str]) -> tuple[Markup, float]:
    """Draw the names of series with their lines, and return them with the height that they take."""
    parts, left, top = [], float(LEFT), 14.0
    for number, name in enumerate(names, start=1):
        words = shortened(name, 40)
        wide = 34 + LETTER * len(words)
        if left > LEFT and left + wide > WIDTH:
            left, top = float(LEFT), top + 18
        parts += [path([(left, top - 4), (left + 22, top - 4)], class_=f"line c{number}"), text(left + 28, top, words)]
        left += wide + 12
    return Markup("").join(parts), top + 4


def thinned(series: Series) -> Series:
    """Return a series of at most `MOST_POINTS` points: means of neighbours. One with intervals stays."""
    count = len(series.points)
    finite = [(x, y) for x, y in series.points if math.isfinite(y)]
    if series.intervals or count <= MOST_POINTS:
        return series if series.intervals else Series(series.name, finite, marks=series.marks)
    size = -(-len(finite) // MOST_POINTS)
    parts = [finite[start : start + size] for start in range(0, len(finite), size)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return Series(series.name, means, marks=series.marks)


def interval_chart(rows: Sequence[IntervalRow], *, reference: float | None, axis: Axis, label: str) -> Markup:
    """Draw a line for each row: its name, value and interval. `reference` is a dashed line through all of them."""
    if not rows:
        return Markup("")
    names = [shortened(row.name, NAME_LETTERS) for row in rows]
    left = 14 + LETTER * max(map(len, names))
    right = 16 + LETTER * max(len(row.note) for row in rows)
    width, step = left + right + 250.0, 22.0 if len(rows) <= 30 else 16.0
    ends = [end for row in rows for end in row.interval]
    low, high = axis.bounds or widened(min(ends), max(ends), room=0.02, share=axis.share)
    x, bottom = Scale(low, high, left, width - right), TOP + step * len(rows)
    parts = []
    places = ticks(low, high)
    for value, words in zip(places, tick_labels(places, share=axis.share), strict=True):
        parts.append(line(x(value), TOP, x(value), bottom, class_="grid"))
        parts.append(text(x(value), bottom + 16, words, anchor="middle"))
    if reference is not None:
        parts.append(line(x(reference), TOP, x(reference), bottom, class_="line reference"))
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = TOP + step * (place + 0.5)
        parts += [
            text(left - 8, y + 4, name, anchor="end"),
            line(x(row.interval[0]), y, x(row.interval[1]), y, class_="whisker c1"),
            element("circle", cx=x(row.value), cy=y, r=4.0, class_="dot c1"),
            text(width - right + 10, y + 4, row.note, class_="quiet"),
        ]
    parts.append(text((left + width - right) / 2, bottom + 36, axis.name, anchor="middle", class_="name"))
    return picture(width, bottom + 44, *parts, label=label)


def reliability_diagram(bins: Sequence[ReliabilityBin], *, label: str) -> Markup:
    """Draw the accuracy of predictions of like confidence, with its interval; the diagonal is perfect calibration."""
    low = max(0.0, min(0.5, *(math.floor(10 * min(each.confidence, each.interval[0])) / 10 for each in bins)))
    bounds = (low, 1.0)
    drawn = frame(Axis("confidence", bounds, share=True), Axis("accuracy", bounds, share=True), [], [], height=WIDTH - 40)
    parts = [drawn.drawn, path([(drawn.x(low), drawn.y(low)), (drawn.x(1), drawn.y(1))], class_="line reference")]
    for each in bins:
        place = drawn.x(each.confidence)
        parts += [
            line(place, drawn.y(each.interval[0]), place, drawn.y(each.interval[1]), class_="whisker c1"),
            element("circle", cx=place, cy=drawn.y(each.accuracy), r=4.0, class_="dot c1"),
        ]
    parts.append(path([(drawn.x(each.confidence), drawn.y(each.accuracy)) for each in bins], class_="line thin c1"))
    return picture(WIDTH, WIDTH - 40, *parts, label=label)


def histogram(values: Sequence[float], *, threshold: float | None, axis: Axis, label: str, bins: int = 40) -> Markup:
    """Draw how often values occur; bars beyond the threshold have another colour."""
    low, high = min(values), max(values)
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    low, high = widened(low, high, room=0.01)
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    drawn = frame(replace(axis, bounds=(low, high)), Axis("images", (0, max(counts) * 1.05), whole=True), [], [])
    wide, parts = (high - low) / bins, [drawn.drawn]
    for place, count in enumerate(counts):
        if count:
            left, right = drawn.x(low + place * wide), drawn.x(low + (place + 1) * wide)
            beyond = threshold is not None and low + (place + 0.5) * wide > threshold
            height = drawn.y(0) - drawn.y(count)
            parts.append(
                element("rect", x=left, y=drawn.y(count), width=right - left - 1, height=height, class_=f"bar c{1 + beyond}")
            )
    if threshold is not None:
        parts.append(line(drawn.x(threshold), TOP, drawn.x(threshold), HEIGHT - BOTTOM, class_="line reference"))
    return picture(WIDTH, HEIGHT, *parts, label=label)


def layer_chart(heads: Sequence[Sequence[float]], *, reference: float | None, axis: Axis, label: str) -> Markup:
    """Draw a dot for each head of each layer, and a line through the means of the layers."""
    count = len(heads)
    values = [value for layer in heads for value in layer] + ([] if reference is None else [reference])
    bounds = axis.bounds or (0.0, max(values) * 1.08 or 1.0)
    drawn = frame(Axis("layer", (-0.5, count - 0.5), whole=True), replace(axis, bounds=bounds), [], [])
    parts = [drawn.drawn]
    if reference is not None:
        parts.append(line(LEFT, drawn.y(reference), WIDTH - RIGHT, drawn.y(reference), class_="line reference"))
    means = [(drawn.x(layer), drawn.y(sum(row) / len(row))) for layer, row in enumerate(heads)]
    parts.append(path(means, class_="line c2"))
    for layer, row in enumerate(heads):
        parts += [element("circle", cx=drawn.x(layer), cy=drawn.y(value), r=3.5, class_="dot hollow c1") for value in row]
    return picture(WIDTH, HEIGHT, *parts, label=label)

"""SVG elements as escaped text, scales and ticks: what the charts are drawn with. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from vitrail.text import one_line

LETTER = 6.4
"""Width in pixels that a letter of a label takes, on average, at `FONT` pixels."""
DECIMALS = 5
"""Decimals of a tick, at most; beyond, it is written with an exponent."""
FONT = 12
"""Size of labels in pixels, as the style sheet has it."""


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Return an SVG element. Children that are no Markup, and all attributes, are escaped; `class_` is class, `x_y` is x-y."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(written(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(child if isinstance(child, Markup) else escape(one_line(child)) for child in children)
    return Markup(f"<{name}{''.join(pairs)}>{inside}</{name}>" if children else f"<{name}{''.join(pairs)}/>")


def written(value: object) -> str:
    """Write a number with at most two decimals, and any other value as it is."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise AssertionError(f"a chart has a coordinate that is not finite: {value}")
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def picture(width: float, height: float, *children: str, label: str, least: float = 0.0) -> Markup:
    """Return an SVG picture, as wide as its place, from `least` to `width` pixels; `label` says in words what it shows."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {written(float(width))} {written(float(height))}",
        role="img",
        aria_label=label,
        style=f"max-width:{written(float(width))}px" + (f";min-width:{written(least)}px" if least else ""),
    )


def text(x: float, y: float, words: str, *, class_: str = "", anchor: str = "start", rotate: float | None = None) -> Markup:
    """Return a label; `anchor` is start, middle or end."""
    turned = None if rotate is None else f"rotate({written(rotate)} {written(float(x))} {written(float(y))})"
    return element("text", words, x=float(x), y=float(y), class_=class_ or None, text_anchor=anchor, transform=turned)


def line(x1: float, y1: float, x2: float, y2: float, *, class_: str) -> Markup:
    """Return a straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(places: Sequence[tuple[float, float]], *, class_: str, closed: bool = False) -> Markup:
    """Return a line through places, or the area within them."""
    steps = " ".join(f"{'L' if index else 'M'}{written(float(x))} {written(float(y))}" for index, (x, y) in enumerate(places))
    return element("path", d=steps + (" Z" if closed else ""), class_=class_)


def shortened(words: str, letters: int) -> str:
    """Shorten a name in the middle: names differ at both ends."""
    shown = one_line(words)
    if len(shown) <= letters:
        return shown
    half = (letters - 1) // 2
    return f"{shown[: letters - 1 - half]}…{shown[-half:]}" if half else shown[: letters - 1] + "…"


# --------------------------------------------------------------------------------------------------------------------
# Scales and ticks


@dataclass(frozen=True)
class Scale:
    """Values to pixels; a value far outside is drawn at the edge."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + min(max(share, -0.02), 1.02) * (self.end - self.start)


def ticks(low: float, high: float, *, count: int = 5, whole: bool = False) -> list[float]:
    """Return about `count` round values from `low` to `high`: multiples of 1, 2 or 5 times a power of ten, or `whole` ones."""
    if not high - low > max(1e-12 * max(abs(low), abs(high)), 1e-300):  # one value, but for rounding
        return [low]
    rough = max((high - low) / max(1, count), 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float], *, share: bool = False) -> list[str]:
    """Return the labels of ticks, with as many decimals as tell them apart; shares in per cent."""
    factor = 100 if share else 1
    step = min((abs(b - a) * factor for a, b in pairwise(values)), default=abs(values[0] * factor) if values else 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if decimals > DECIMALS:
        return [f"{value * factor:.1e}" for value in values]
    return [f"{value * factor:,.{decimals}f}" + (" %" if share else "") for value in values]


def widened(low: float, high: float, *, room: float = 0.06, share: bool = False) -> tuple[float, float]:
    """Return bounds with some room on either side; of one value, some room around it. Those of a share end at 0 and 1."""
    extra = (high - low) * room or abs(high) * 0.1 or 1.0
    if share:
        return max(0.0, low - extra), min(1.0, high + extra)
    return low - extra, high + extra

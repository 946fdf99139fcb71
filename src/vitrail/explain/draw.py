"""Drawing of maps over pictures, and of sheets of them: perceptually uniform colours, each patch at its pixels, a legend.

A sheet is laid out in pixels from its upper left corner, so that small pictures are enlarged by whole factors and no other way.
"""

# C channels · H W image · gh gw grid

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image
from torch import Tensor

from vitrail.settings import Pair
from vitrail.text import printable
from vitrail.weights.run_folder import write_atomically

ALPHA = 0.85
"""Opacity of the colours at the highest value."""
_FAINT = 0.35  # share of the opacity at the lowest value: the photograph shows, and is dark where the map is low
_EASE = 0.7  # exponent from distance to zero to opacity, for signed maps: weak evidence shows
_UNSIGNED, _SIGNED = "inferno", "coolwarm"  # Smith & van der Walt 2015; Moreland 2009

DPI = 128  # a power of two: a figure's inches times it are whole pixels
_CELL = 256  # pixels that a picture may take in a sheet, on its longer side
_NARROW = 168  # pixels that a column takes at least, for its words
_ACROSS = 6  # maps side by side, at most
_MARGIN, _GAP, _LINE = 20, 14, 17  # pixels
_LETTERS = 8.5  # points
_MOST_LINES = 6  # of words above or below a picture
_BAR = (140, 14)  # the legend's, in pixels
_LONGEST = 2**16 - 1  # pixels a side that matplotlib draws


# --------------------------------------------------------------------------------------------------------------------
# One map over one picture


def picture(pixels: UInt8[Tensor, "C H W"] | UInt8[np.ndarray, "C H W"]) -> Image.Image:
    """Return pixels as an RGB picture: of one or two channels the first as grey, of more the first three as colours."""
    channels = np.asarray(pixels)
    shown = channels[:3] if len(channels) >= 3 else channels[[0, 0, 0]]
    return Image.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))


def shown_bands(count: int) -> str:
    """Return a note on which of an image's bands `picture` draws; empty where it draws all."""
    if count in (1, 3):
        return ""
    return f"the picture shows {'bands 1 to 3, as red, green, blue,' if count > 3 else 'band 1'} of {count}"


@dataclass(frozen=True, eq=False)
class Placed:
    """A map and the place of its patches on the image. Raises ValueError for a map with numbers that are not finite."""

    map: Float[np.ndarray, "gh gw"]
    patch: Pair
    """Height and width of a patch, in pixels of the image."""
    size: Pair
    """Height and width of the image without padding, in pixels; patches beyond it are not drawn."""

    def __post_init__(self) -> None:
        assert all(count * side >= whole for count, side, whole in zip(self.map.shape, self.patch, self.size, strict=True))
        wrong = self.cropped.size - int(np.isfinite(self.cropped).sum())
        if wrong:
            raise ValueError(f"{wrong} of the map's {self.cropped.size} numbers are not finite; compute it in float32")

    @property
    def cropped(self) -> Float[np.ndarray, "_ _"]:
        """The part of the map whose patches hold pixels of the image."""
        down, across = (-(-whole // side) for whole, side in zip(self.size, self.patch, strict=True))
        return self.map[:down, :across]

    def spread(self, size: Pair | None = None, *, smooth: bool = True) -> Float[np.ndarray, "H W"]:
        """Resample the map to the image's pixels, or to those of a picture of the same shape: (height, width).

        Smooth is bilinear between the centres of the patches, and constant from the outermost centres to the edge. Else each
        patch covers its pixels.
        """
        return self.spread_of(self.cropped, size or self.size, smooth=smooth)

    def spread_of(self, values: Float[np.ndarray, "_ _"], size: Pair, *, smooth: bool) -> Float[np.ndarray, "H W"]:
        """Resample other numbers of the same patches, as `spread` does."""
        down, across = (
            _shares(pixels, whole, side, count, smooth=smooth)
            for pixels, whole, side, count in zip(size, self.size, self.patch, values.shape, strict=True)
        )
        return down @ values.astype(np.float32) @ across.T


def _shares(pixels: int, whole: int, side: int, count: int, *, smooth: bool) -> Float[np.ndarray, "{pixels} {count}"]:
    """Return the weight of each patch in each of a row of pixels, which show `whole` pixels of the image."""
    twice = (2 * np.arange(pixels) + 1) * whole  # twice the place of a pixel's centre, times `pixels`: a whole number
    if not smooth:
        return (twice[:, None] // (2 * pixels * side) == np.arange(count)).astype(np.float32)
    place = np.clip(twice / (2 * pixels * side) - 0.5, 0, count - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(count)), 0).astype(np.float32)


def overlay(
    picture: Image.Image,
    placed: Placed,
    *,
    signed: bool = False,
    colors: Float[np.ndarray, "gh gw 3"] | None = None,
    alpha: float = ALPHA,
    smooth: bool = True,
) -> Image.Image:
    """Draw a map over a picture of the model's input, at the picture's size, in grey so that all colours are the map's.

    The colours go from the map's least number to its greatest (inferno), and the picture is dimmed where it is low; with
    `signed` from blue, against, to red, for, and the picture shows at zero. `alpha` is the opacity at the highest. A constant
    map is low everywhere. With `colors`, red, green, blue from 0 to 1, the patches have these.
    Raises ValueError for an alpha outside 0 to 1, a picture of another shape than the image, and colours that are not finite.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} must be from 0 to 1")
    size = (picture.height, picture.width)
    require_shape(size, placed.size)
    if colors is None:
        values = _scaled(placed.spread(size, smooth=smooth), placed.cropped, signed=signed)  # (H, W)
        opacity = alpha * (np.abs(2 * values - 1) ** _EASE if signed else _FAINT + (1 - _FAINT) * values)[..., None]
        paint = matplotlib.colormaps[_SIGNED if signed else _UNSIGNED](values, bytes=True)[..., :3]  # (H, W, 3)
    else:
        if not np.isfinite(colors).all():
            raise ValueError("the map's colours are not finite; compute it in float32")
        down, across = placed.cropped.shape
        planes = (placed.spread_of(colors[:down, :across, plane], size, smooth=smooth) for plane in range(3))
        paint, opacity = 255 * np.stack(list(planes), axis=-1).clip(0, 1), np.float32(alpha)
    base = np.asarray(picture.convert("L"), dtype=np.float32)[..., None]
    mixed = base + opacity * (paint - base)
    return Image.fromarray(mixed.round().astype(np.uint8))


def require_shape(size: Pair, whole: Pair) -> None:
    """Raise ValueError for a picture of another aspect ratio than the image, up to the rounding of a pixel."""
    if abs(size[1] * whole[0] - whole[1] * size[0]) > max(sum(size), sum(whole)):
        raise ValueError(
            f"a picture of {size[1]}x{size[0]} px has not the shape of what the model saw, {whole[1]}x{whole[0]} px; "
            "crop it as the model's view is cropped"
        )


def _scaled(values: Float[np.ndarray, "H W"], patches: Float[np.ndarray, "_ _"], *, signed: bool) -> Float[np.ndarray, "H W"]:
    """Scale to 0 to 1 by the range of the patches; of signed values, zero is ½."""
    low, high = float(patches.min()), float(patches.max())
    most = max(-low, high)
    if signed:
        return np.clip(values / (2 * most) + 0.5, 0, 1) if most else np.full_like(values, 0.5)
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # the same but for rounding
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


# --------------------------------------------------------------------------------------------------------------------
# Sheets


@dataclass(frozen=True, eq=False)
class Panel:
    """A map in a sheet, with its label and numbers."""

    placed: Placed
    label: str = ""
    """Above: method, layer, head, class."""
    line: str = ""
    """Below: its numbers."""
    signed: bool = False
    colors: Float[np.ndarray, "gh gw 3"] | None = None
    legend: tuple[str, str] | None = None
    """Names of the lowest and the highest colour; None: low and high, or against and for."""


@dataclass(frozen=True, eq=False)
class SheetRow:
    """An image and its maps."""

    picture: Image.Image
    """The image as the model sees it."""
    name: str
    panels: Sequence[Panel]
    label: str = ""
    """Below the picture: its class."""


def sheet(rows: Sequence[SheetRow], *, note: str = "", grid: bool = False, smooth: bool = True, alpha: float = ALPHA) -> Figure:
    """Draw each image with its maps beside it, and the legend and the `note` below; write it with `save`.

    Above six maps, a row continues in a second line. With `grid`, thin lines show the patches. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row; there are no images")
    with _no_glyph_warnings():
        return _Sheet(rows, note=note, grid=grid, smooth=smooth, alpha=alpha).figure()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a sheet as PNG, pixel by pixel as laid out, and return the path. Raises ValueError for another suffix."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f'"{path.name}" does not end in .png; a sheet is saved as PNG')
    with _no_glyph_warnings(), write_atomically(path) as draft:
        figure.savefig(draft, dpi=DPI, format="png")
    return path


class _Sheet:
    """The layout of a sheet: pictures, texts and lines with their places in pixels, from top to bottom."""

    def __init__(self, rows: Sequence[SheetRow], *, note: str, grid: bool, smooth: bool, alpha: float) -> None:
        self.grid, self.smooth, self.alpha = grid, smooth, alpha
        self.images: list[tuple[Image.Image, int, int]] = []  # with left and top
        self.words: list[tuple[str, int, int, str, str]] = []  # with left, top, weight and colour
        self.lines: list[tuple[list[int], list[int]]] = []  # x and y
        most = max(len(row.panels) for row in rows)
        self.across = math.ceil(most / math.ceil(most / _ACROSS)) if most else 0
        pictures = [at_cell_size(row.picture) for row in rows]
        self.column = max(_NARROW, *(one.width for one in pictures))
        self.width = max(self.left(self.across) + self.column + _MARGIN, 3 * _NARROW)
        self.height = _MARGIN
        for row, shown in zip(rows, pictures, strict=True):
            self.add_row(row, shown)
        self.add_legend([panel for row in rows for panel in row.panels])
        lines = wrapped(note, width=self.width - 2 * _MARGIN)
        self.put(lines, _MARGIN, self.height, color="0.3")
        self.height += _LINE * len(lines) + _MARGIN

    def left(self, column: int) -> int:
        """Return the left edge of a column; column 0 is the image."""
        return _MARGIN + column * (self.column + _GAP)

    def add_row(self, row: SheetRow, shown: Image.Image) -> None:
        """Add an image and its maps, in as many lines as they take."""
        starts = range(0, len(row.panels), self.across) if row.panels else [0]
        lines = [row.panels[start : start + self.across] for start in starts]
        for number, panels in enumerate(lines):
            above = {column: self.wrapped(panel.label) for column, panel in enumerate(panels, start=1)}
            below = {column: self.wrapped(panel.line) for column, panel in enumerate(panels, start=1)}
            if number == 0:
                above[0] = self.wrapped(" ".join(row.name.split()), weight="bold")
                below[0] = self.wrapped(row.label)
            top = self.height + _LINE * max(map(len, above.values())) + 4
            for column, words in above.items():
                self.put(words, self.left(column), top - 4 - _LINE * len(words), weight="bold" if column == 0 else "normal")
            if number == 0:
                self.images.append((shown, self.left(0), top))
            for column, panel in enumerate(panels, start=1):
                drawn = overlay(
                    shown, panel.placed, signed=panel.signed, colors=panel.colors, alpha=self.alpha, smooth=self.smooth
                )
                self.images.append((drawn, self.left(column), top))
                if self.grid:
                    self.add_grid(panel.placed, drawn, self.left(column), top)
            under = top + shown.height + 5
            for column, words in below.items():
                self.put(words, self.left(column), under, color="0.3")
            self.height = under + _LINE * max(map(len, below.values())) + _GAP
        self.height += _GAP

    def add_grid(self, placed: Placed, drawn: Image.Image, left: int, top: int) -> None:
        """Add lines between the patches."""
        down, across = placed.cropped.shape
        for y in range(1, down):
            place = top + round(y * placed.patch[0] * drawn.height / placed.size[0])
            self.lines.append(([left, left + drawn.width], [place, place]))
        for x in range(1, across):
            place = left + round(x * placed.patch[1] * drawn.width / placed.size[1])
            self.lines.append(([place, place], [top, top + drawn.height]))

    def add_legend(self, panels: Sequence[Panel]) -> None:
        """Add a colour bar for each kind of map."""
        plain = [panel for panel in panels if panel.colors is None]
        place, top = _MARGIN, self.height
        kinds = {(panel.signed, panel.legend or (("against", "for") if panel.signed else ("low", "high"))) for panel in plain}
        for signed, (low, high) in sorted(kinds):
            before, after = (round(_measured(word)) + 8 for word in (low, high))
            if place > _MARGIN and place + before + _BAR[0] + 8 + after > self.width - _MARGIN:
                place, top = _MARGIN, top + _LINE + 4
            self.put([low], place, top)
            self.images.append((_bar(signed=signed, alpha=self.alpha), place + before, top + 1))
            self.put([high], place + before + _BAR[0] + 8, top)
            place += before + _BAR[0] + after + 2 * _GAP
        notes = ["each map on its own scale"] if plain else []
        notes += ["patches of like colour have like features"] if len(plain) < len(panels) else []
        words = "; ".join(notes)
        if place > _MARGIN and place + _measured(words) > self.width - _MARGIN:
            place, top = _MARGIN, top + _LINE + 4
        self.put(wrapped(words, width=self.width - 2 * _MARGIN), place, top, color="0.3")
        if panels:
            self.height = top + _LINE + _GAP // 2

    def wrapped(self, text: str, *, weight: str = "normal") -> list[str]:
        """Return a text in lines as wide as a column."""
        return wrapped(text, width=self.column, most=_MOST_LINES, weight=weight)

    def put(self, lines: Sequence[str], left: int, top: int, *, weight: str = "normal", color: str = "0.1") -> None:
        """Add lines of text, one below the other."""
        self.words += [(line, left, top + number * _LINE, weight, color) for number, line in enumerate(lines)]

    def figure(self) -> Figure:
        """Return the figure, one pair of axes in pixels. Raises ValueError for a sheet too large for matplotlib."""
        if max(self.width, self.height) > _LONGEST:
            raise ValueError(
                f"a sheet of {self.width}x{self.height} px is larger than {_LONGEST} px a side; draw fewer images at a time"
            )
        figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        axes: Axes = figure.add_axes((0, 0, 1, 1))
        for image, left, top in self.images:
            extent = (left, left + image.width, top + image.height, top)
            axes.imshow(np.asarray(image), extent=extent, aspect="auto", interpolation="nearest")
        for x, y in self.lines:
            axes.plot(x, y, color="white", alpha=0.3, linewidth=0.6, solid_capstyle="butt")
        for text, left, top, weight, color in self.words:
            baseline = top + 0.76 * _LINE
            axes.text(left, baseline, text, fontsize=_LETTERS, weight=weight, color=color, va="baseline", parse_math=False)
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.set_axis_off()
        return figure


def at_cell_size(picture: Image.Image) -> Image.Image:
    """Resize a picture for a sheet: enlarge it by a whole factor, or shrink it. Elongated pictures get a longer side."""
    long = max(picture.size)
    room = _CELL * min(1.5, math.sqrt(long / min(picture.size)))
    if long <= room:
        factor = int(room // long)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, round(side * room / long)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _bar(*, signed: bool, alpha: float) -> Image.Image:
    """Draw a colour bar: a map from lowest to highest over mid-grey."""
    width, height = _BAR
    ramp = np.linspace(-1 if signed else 0, 1, width, dtype=np.float32)[None]
    return overlay(
        Image.new("RGB", _BAR, (128, 128, 128)), Placed(ramp, (height, 1), (height, width)), signed=signed, alpha=alpha
    )


def wrapped(text: str, *, width: int, most: int | None = None, weight: str = "normal") -> list[str]:
    """Wrap a text in lines of at most `width` pixels, between words, and inside words that are too long.

    Of more than `most` lines, the last kept one ends in "…".
    """
    lines: list[str] = []
    for paragraph in legible(text).splitlines():
        line = ""
        for word in paragraph.split():
            if _measured(f"{line} {word}".strip(), weight) <= width:
                line = f"{line} {word}".strip()
                continue
            lines += [line] if line else []
            *full, line = _broken(word, width, weight)
            lines += full
        lines += [line] if line else []
    if most is not None and len(lines) > most:
        last = lines[most - 1]
        while last and _measured(last + "…", weight) > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "…"]
    return lines


def legible(text: str) -> str:
    """Return a text that can be drawn, with unprintable characters as escapes."""
    return printable(text, lines=True)


def _broken(word: str, width: int, weight: str) -> Iterator[str]:
    """Yield a word in parts that fit, of at least one letter."""
    while _measured(word, weight) > width and len(word) > 1:
        part = next((end for end in range(len(word) - 1, 1, -1) if _measured(word[:end], weight) <= width), 1)
        yield word[:part]
        word = word[part:]
    yield word


@cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]


def _measured(text: str, weight: str = "normal") -> float:
    """Return the width of a line of text, in pixels."""
    letters = FontProperties(size=_LETTERS, weight=weight)
    width: float = _renderer().get_text_width_height_descent(text, letters, ismath=False)[0]  # type: ignore[no-untyped-call]
    return width


@contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    """Within the context, missing glyphs show as boxes without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield

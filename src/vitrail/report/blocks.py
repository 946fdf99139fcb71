"""Parts of a page as plain values: sections are made of these, and one template writes them as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup
from PIL import Image


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    words: str
    quiet: bool = False
    """Small and grey: how to read a figure, where a number comes from."""


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    words: Sequence[str]


@dataclass(frozen=True)
class Findings:
    """A numbered list: a finding, and what to do."""

    kind: ClassVar[str] = "advice"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Tile:
    """A figure with its name."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Tiles:
    """Main figures."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Pairs:
    """Names and their values."""

    kind: ClassVar[str] = "pairs"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table; columns are numbers, except the first and those in `words`."""

    kind: ClassVar[str] = "table"
    name: str
    """Caption."""
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()

    def is_number(self, column: int) -> bool:
        """Return whether a column holds numbers."""
        return column > 0 and self.columns[column] not in self.words


@dataclass(frozen=True)
class Chart:
    """An SVG chart with its title and a line below it."""

    title: str
    drawing: Markup
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts side by side, as many as fit; `wide` ones are below each other."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]
    wide: bool = False


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture with a text alternative, and lines below it."""

    picture: Image.Image
    alt: str
    lines: Sequence[str] = ()
    overlay: Image.Image | None = None
    """A map over the picture, shown beside it."""
    overlay_alt: str = ""
    right: bool | None = None
    """Whether the answer is right; None where that is no question."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Pictures side by side."""

    kind: ClassVar[str] = "gallery"
    title: str
    pictures: Sequence[Shown]


@dataclass(frozen=True)
class Code:
    """Lines to be typed, or a file."""

    kind: ClassVar[str] = "code"
    text: str
    name: str = ""
    """What it is, for screen readers."""


@dataclass(frozen=True)
class Download:
    """A text file inside the page."""

    kind: ClassVar[str] = "download"
    file: str
    words: str
    text: str


@dataclass(frozen=True)
class Beside:
    """Parts side by side on a wide screen, below each other on a narrow one."""

    kind: ClassVar[str] = "beside"
    left: Sequence[Block]
    right: Sequence[Block]


@dataclass(frozen=True)
class Fold:
    """Parts that are shown when asked for."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: Sequence[Block]


Block = Text | Points | Findings | Tiles | Pairs | Table | Charts | Gallery | Code | Download | Beside | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    name: str
    """Anchor, such as "calibration"."""
    title: str
    blocks: Sequence[Block]
    missing: str = ""
    """Why there is nothing to show; "" for a section that has its blocks."""


def absent(name: str, title: str, reason: str) -> Section:
    """Return a section that has nothing to show, with the reason."""
    return Section(name, title, [], reason)


# --------------------------------------------------------------------------------------------------------------------
# Numbers as words


def percent(share: float, decimals: int = 1) -> str:
    """Format a share: 87.3 %; "–" for NaN."""
    return f"{100 * share:.{decimals}f} %" if share == share else "–"


def interval(ends: tuple[float, float], decimals: int = 1) -> str:
    """Format an interval of shares in per cent: 84.1 to 90.2 %."""
    return f"{100 * ends[0]:.{decimals}f} to {100 * ends[1]:.{decimals}f} %"


def counted(count: int, noun: str, plural: str = "s") -> str:
    """Format a number and its noun: 12 images."""
    return f"{count:,} {noun}{'' if count == 1 else plural}"

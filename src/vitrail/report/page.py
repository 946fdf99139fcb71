"""The page: sections in their order, written as HTML by one template that escapes every text."""

from __future__ import annotations

import base64
import datetime
import functools
import io
from collections.abc import Callable, Sequence
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from vitrail.models.machine import package_version
from vitrail.report.blocks import Pairs, Section
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material
from vitrail.report.sections.baselines import baselines
from vitrail.report.sections.calibration import calibration
from vitrail.report.sections.confusion import confusion
from vitrail.report.sections.corruptions import corruptions
from vitrail.report.sections.data_check import data_check
from vitrail.report.sections.errors import errors
from vitrail.report.sections.hub_card import hub_card
from vitrail.report.sections.next_steps import next_steps
from vitrail.report.sections.outliers import outliers
from vitrail.report.sections.reproduce import reproduce
from vitrail.report.sections.scores import scores
from vitrail.report.sections.selective import selective
from vitrail.report.sections.summary import summary
from vitrail.report.sections.training import training
from vitrail.report.sections.whole_model import whole_model
from vitrail.text import one_line

SECTIONS: tuple[Callable[[RunFacts, Material], Section], ...] = (
    summary,
    next_steps,
    training,
    data_check,
    baselines,
    scores,
    confusion,
    calibration,
    selective,
    outliers,
    corruptions,
    errors,
    whole_model,
    reproduce,
    hub_card,
)
"""Every section, in the order of the page."""
SMALL_PX, LARGEST_PX = 96, 224
"""Pictures up to the first are kept exactly and enlarged by whole pixels; sides beyond the second are shrunk."""
QUALITY = 82


def render_page(facts: RunFacts, material: Material) -> str:
    """Return the page as HTML that needs no other file and no network."""
    title = f"{one_line(facts.name)}: report"
    return write_page(title, with_missing([section(facts, material) for section in SECTIONS]))


def with_missing(sections: Sequence[Section]) -> list[Section]:
    """Return the sections that have something to show, and behind them one that says why the others have not."""
    shown = [section for section in sections if not section.missing]
    missing = [section for section in sections if section.missing]
    reasons = [(section.title, f"{section.missing[0].upper()}{section.missing[1:]}.") for section in missing]
    return [*shown, Section("missing", "Not shown", [Pairs(reasons)])] if reasons else shown


def write_page(title: str, sections: Sequence[Section]) -> str:
    """Write sections as HTML."""
    template = environment().get_template("page.html")
    style = resources.files("vitrail.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    made = f"Made by Vitrail {package_version()}, {datetime.datetime.now(datetime.UTC).date().isoformat()}"
    return template.render(title=title, sections=sections, style=Markup(style), made=made)  # our own style sheet


@functools.cache
def environment() -> Environment:
    """Return the environment of the templates, which escapes all values."""
    loader = PackageLoader("vitrail.report")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"data_uri": data_uri, "is_small": is_small, "line": line, "prose": prose, "text_uri": text_uri}
    return found


def line(words: str) -> str:
    """Return a text on one line, which is not broken between a number and its per cent sign."""
    return one_line(words).replace(" %", "\u00a0%")


def prose(words: str) -> Markup:
    """Return a line of text, escaped, in which what stands between backticks is code."""
    parts = [escape(part) for part in line(words).split("`")]
    if len(parts) % 2 == 0:  # one backtick without its other
        return Markup("`").join(parts)
    return Markup("").join(Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts))


def is_small(picture: Image.Image) -> bool:
    """Return whether a picture is enlarged by whole pixels."""
    return max(picture.size) <= SMALL_PX


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a data URI: WebP, lossless for small ones, shrunk to `LARGEST_PX`."""
    buffer, shown = io.BytesIO(), picture
    if is_small(picture):
        shown.save(buffer, format="WEBP", lossless=True, method=4)
    else:
        shown = picture.copy()
        shown.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
        shown.save(buffer, format="WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def text_uri(text: str) -> str:
    """Return a text as a data URI."""
    return f"data:text/markdown;charset=utf-8;base64,{base64.b64encode(text.encode(errors='backslashreplace')).decode()}"

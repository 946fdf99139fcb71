"""The page: it stands alone, escapes every name, has a text for each picture, and its parts are in order."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.report.blocks import (
    Beside,
    Chart,
    Charts,
    Code,
    Download,
    Findings,
    Fold,
    Gallery,
    Pairs,
    Points,
    Section,
    Shown,
    Table,
    Text,
    Tile,
    Tiles,
    absent,
)
from vitrail.report.charts import Axis, Series, line_chart
from vitrail.report.page import LARGEST_PX, data_uri, prose, text_uri, with_missing, write_page

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements of a page with their attributes, and its text; raises for elements that are not closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def sections(name: str) -> list[Section]:
    """Return every kind of block with a name in every place that takes text."""
    picture = Image.new("RGB", (8, 8), "red")
    chart = line_chart([Series(name, [(0, 0), (1, 1)]), Series("other", [(0, 1)])], x=Axis(name), y=Axis(name), label=name)
    shown = Shown(picture, name, [name, name], overlay=picture, overlay_alt=name, right=True)
    blocks = [
        Text(name),
        Text(name, quiet=True),
        Points([name]),
        Findings([(name, name)]),
        Tiles([Tile(name, name, name)]),
        Pairs([(name, name)]),
        Table(name, [name, name], [[name, name]]),
        Charts([Chart(name, chart, name)], wide=True),
        Gallery(name, [shown, Shown(picture, name)]),
        Code(name, name),
        Download("README.md", name, name),
        Beside([Text(name)], [Text(name)]),
        Fold(name, [Text(name)]),
    ]
    return [Section("all", name, blocks), absent("none", name, f"because of {name}")]


@settings(max_examples=12)
@given(name=st.text(min_size=1, max_size=20).map(lambda text: f"<script>alert(1)</script>\"'&{text}"))
def test_every_text_is_escaped(name: str) -> None:
    page = Page(write_page(name, with_missing(sections(name))))
    assert not page.all("script")
    assert {tag for tag, _ in page.elements} >= {"svg", "img", "table", "figure", "dl", "details", "pre", "code"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "".join(page.text).count("<script>alert(1)</script>") > 20, "and shown as it is"


def test_the_page_has_a_language_a_title_and_one_main_heading() -> None:
    page = Page(write_page("A run", sections("plain")))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert len(page.all("main")) == 1
    assert [each["id"] for each in page.all("h2")] == ["all-title", "none-title"]
    assert {each["href"] for each in page.all("a")} >= {"#all", "#none"}
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_pictures_have_a_text_alternative_and_tables_a_head() -> None:
    page = Page(write_page("A run", sections("plain")))
    assert page.all("img")
    assert all(each["alt"] for each in page.all("img"))
    assert all(each["role"] == "img" and each["aria-label"] for each in page.all("svg"))
    assert {each["scope"] for each in page.all("th")} == {"col", "row"}


def test_parts_that_do_not_apply_come_last_with_their_reasons() -> None:
    shown = with_missing([absent("a", "First", "it is not there"), Section("b", "Second", [Text("here")])])
    assert [section.name for section in shown] == ["b", "missing"]
    assert shown[-1].blocks == [Pairs([("First", "It is not there.")])]
    assert [section.name for section in with_missing(shown[:1])] == ["b"]


@pytest.mark.parametrize(
    ("words", "html"),
    [
        ("`vitrail push` uploads <it>", "<code>vitrail push</code> uploads &lt;it&gt;"),
        ("one ` alone", "one ` alone"),
        ("`<b>`", "<code>&lt;b&gt;</code>"),
        ("two\nlines", "two lines"),
    ],
)
def test_code_in_a_sentence(words: str, html: str) -> None:
    assert prose(words) == html


def test_small_pictures_are_exact_and_large_ones_are_shrunk() -> None:
    def decoded(uri: str) -> Image.Image:
        kind, _, body = uri.partition(";base64,")
        assert kind == "data:image/webp"
        return Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")

    small = Image.effect_noise((28, 28), 80).convert("RGB")
    assert decoded(data_uri(small)).tobytes() == small.tobytes()
    assert decoded(data_uri(Image.new("RGB", (1000, 500)))).size == (LARGEST_PX, LARGEST_PX // 2)


def test_a_text_is_a_file_in_the_page() -> None:
    uri = text_uri("naïve \udcff")
    assert base64.b64decode(uri.partition(";base64,")[2]).decode() == "naïve \\udcff"


def test_the_style_loads_nothing() -> None:
    style = (Path(__file__).parents[2] / "src/vitrail/report/templates/style.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    names = set(re.findall(r"var\((--[\w-]+)\)", style))
    light, dark = style.partition("@media screen and (prefers-color-scheme: dark)")[::2]
    for part in (light, dark.partition("\n}\n")[0]):
        assert names <= set(re.findall(r"(--[\w-]+):", part)), "light and dark have every colour"

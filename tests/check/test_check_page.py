from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from planted import photo

from vitrail.check import check
from vitrail.check.page import SIDE, write_page


class Elements(HTMLParser):
    """Tags with their attributes, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("cat", "dog <b>"):
        (root / "train" / name).mkdir(parents=True)
        for number in range(12):
            photo(100 * len(name) + number).save(root / "train" / name / f"{number}.jpg")
    shutil.copy(root / "train/cat/0.jpg", root / "train/dog <b>/copy.jpg")
    (root / "train/cat/broken.jpg").write_bytes(b"no image")
    return root


def test_the_page_stands_alone_and_every_picture_has_words(photos: Path, tmp_path: Path) -> None:
    written = write_page(check(photos, val_fraction=0), photos, tmp_path / "check.html")
    text = written.read_text()
    elements = Elements(text)
    assert elements.open == []
    pictures = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(pictures) == 2
    assert {picture["alt"] for picture in pictures} == {"image train/cat/0.jpg", "image train/dog <b>/copy.jpg"}
    for picture in pictures:
        data = str(picture["src"]).removeprefix("data:image/jpeg;base64,")
        with Image.open(BytesIO(base64.b64decode(data))) as thumbnail:
            assert max(thumbnail.size) == SIDE
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "<b>" not in text
    assert "prefers-color-scheme: dark" in text
    assert '<html lang="en">' in text
    links = {str(attributes["href"])[1:] for tag, attributes in elements.found if tag == "a"}
    assert (
        links
        == {attributes["id"] for tag, attributes in elements.found if "id" in attributes}
        == {"not-an-image", "two-labels"}
    )


def test_a_page_that_can_not_be_written_is_an_error(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be written"):
        write_page(check(photos, exact_only=True), photos, tmp_path / "nowhere" / "check.html")

"""`vitrail check`: what is in a data set, and what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from command_line import Typed

ImageFolder = Callable[..., Path]  # conftest.py's


def test_check_finds_what_is_broken(vitrail: Typed, image_folder: ImageFolder) -> None:
    photos = image_folder({"cat": 10, "dog": 10})
    assert vitrail("check", photos).code == 0
    (photos / "cat" / "broken.jpg").write_bytes(b"no image")
    said = vitrail("check", photos)
    assert said.code == 1
    assert "broken.jpg" in said.out
    found = json.loads(vitrail("check", photos, "--json").out)
    assert found["images"] == 20
    assert sum(found["counts"][split]["dog"] for split in found["counts"]) == 10
    assert [bad["path"] for bad in found["bad"]] == ["cat/broken.jpg"]
    assert found["sizes"] == [{"height": 40, "width": 32, "images": 20}]

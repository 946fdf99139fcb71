"""The page in a real browser: as wide as its screen, without a request, an error or a script. Needs Chromium."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "report_screenshots.py"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report_screenshots", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_screenshots"] = module
    spec.loader.exec_module(module)
    return module


TOOLS = load_tool()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(TOOLS.find_browser() is None, reason="no chromium here; on Debian: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with TOOLS.open_browser() as opened:
        yield opened


@pytest.mark.parametrize("screen", TOOLS.SCREENS)
@pytest.mark.parametrize("scheme", TOOLS.SCHEMES)
def test_the_page_fits_its_screen_and_asks_for_nothing(browser: Any, run_folder: Path, screen: str, scheme: str) -> None:
    width, height = TOOLS.SCREENS[screen]
    browser.open(run_folder / "report.html", width=width, height=height, scheme=scheme)
    assert browser.overflow() == 0
    assert browser.requests() == []
    assert not [event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert browser.run("document.scripts.length") == 0
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    dark = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert dark == (scheme == "dark")
    assert browser.picture(height=300).size == (width, 300)


def test_paper_is_white(browser: Any, run_folder: Path) -> None:
    browser.open(run_folder / "report.html", width=800, height=600, scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")

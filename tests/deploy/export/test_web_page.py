"""The page of a web export, in Chromium: the logits and probabilities of Python, from a folder served as it is."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from export_cases import calibrated, make
from PIL import Image

from npm_packages import unpack
from vitrail.deploy import Predictor
from vitrail.deploy.export.metadata import card_of
from vitrail.deploy.export.run import export
from vitrail.deploy.export.to_web import RUNTIME_FILES, find_runtime, write_page
from vitrail.models.backbone import Backbone
from vitrail.weights import save_model

CHROMIUM = Path("/usr/bin/chromium")
browser_test = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")
TIMEOUT_MS = 120_000


class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map: ClassVar = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-web, unpacked as the guide says."""
    return unpack("onnxruntime-web", tmp_path_factory.mktemp("npm")).parent


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_default_timeout(TIMEOUT_MS)
        yield opened
        browser.close()


def photos(folder: Path) -> Path:
    """Images of two classes as PNG: colour, grey and with an alpha channel."""
    rng = np.random.default_rng(0)
    for kind, mode, channels in (("cat", "RGB", 3), ("dog", "L", 1), ("dog", "RGB", 3)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (50, 70, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze()).save(folder / kind / f"{mode}.png")
    return folder


def saved(model: Backbone, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder, data="toys")
    return folder


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("kind", ["colour", "grey", "several labels"])
def test_the_page_gives_what_python_gives(kind: str, tmp_path: Path, runtime: Path, serve: Any, page: Any) -> None:
    model = calibrated(make("vit", classes=3, in_channels=1 if kind == "grey" else 3))
    model.multi_label = kind == "several labels"
    if model.multi_label:
        model.card = replace(model.card, calibration=None)
    run, images = saved(model, tmp_path / "run"), photos(tmp_path / "photos")
    folder = export(run, "web", images=str(images), runtime=runtime).folder
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    address = serve(folder)
    page.goto(address)
    page.wait_for_selector("#file:enabled")
    python = Predictor(run, backend="fp32", device="cpu")
    for photo in sorted(images.rglob("*.png")):
        page.set_input_files("#file", str(photo))
        page.wait_for_selector("#result[data-logits]")
        view = python._view(photo)
        assert isinstance(view, torch.Tensor)
        given = json.loads(page.get_attribute("#result", "data-logits"))
        np.testing.assert_allclose(given, python.logits(view[None])[0], atol=1e-3)
        given = json.loads(page.get_attribute("#result", "data-probabilities"))
        expected = python.predict([photo], top=3)[0]
        np.testing.assert_allclose(sorted(given, reverse=True), [p for _, p in expected.top], atol=1e-3)
        first = page.locator("#result li").first
        assert expected.label in first.text_content()
        assert page.locator("#note").is_visible() == bool(expected.outlier)
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)
    assert len(asked) > 3


@pytest.mark.slow
@browser_test
def test_the_page_says_what_it_lacks(tmp_path: Path, runtime: Path, serve: Any, page: Any) -> None:
    card = card_of(make("vit"), source="run", format="web", inputs="raw", dynamic_size=False)
    write_page(tmp_path, card, runtime=None)
    address = serve(tmp_path)
    page.goto(address)
    page.get_by_text("The folder ort beside this page lacks").wait_for()
    assert page.locator("#file").is_disabled()
    write_page(tmp_path, card, runtime=runtime)  # now the model's file alone is missing
    page.goto(address)
    page.locator("#status", has_text="model.onnx").wait_for()


@pytest.mark.slow
@browser_test
def test_a_file_that_is_no_image_is_told_of(tmp_path: Path, runtime: Path, serve: Any, page: Any) -> None:
    run = saved(make("vit", classes=3), tmp_path / "run")
    folder = export(run, "web", images=str(photos(tmp_path / "photos")), runtime=runtime).folder
    page.goto(serve(folder))
    page.wait_for_selector("#file:enabled")
    (tmp_path / "none.png").write_bytes(b"no image")
    page.set_input_files("#file", str(tmp_path / "none.png"))
    page.get_by_text("This file is no image that the browser can read.").wait_for()


def test_no_class_name_ends_the_script(tmp_path: Path) -> None:
    model = make("vit", classes=2)
    model.classes = ("</script><b>", "dog")
    write_page(tmp_path, card_of(model, source="run", format="web", inputs="raw", dynamic_size=False), runtime=None)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "</script><b>" not in text
    entry = text.partition('id="card">')[2].partition("</script>")[0]
    assert json.loads(entry)["classes"] == ["</script><b>", "dog"]
    assert not (tmp_path / "ort").exists()


def test_what_a_page_needs(tmp_path: Path) -> None:
    model = make("vit", in_channels=2)
    card = card_of(model, source="run", format="web", inputs="raw", dynamic_size=False)
    with pytest.raises(ValueError, match="a browser gives images of 1 or 3 channels, and the model takes 2; export it to onnx"):
        write_page(tmp_path, card, runtime=None)
    with pytest.raises(ValueError, match="unpack onnxruntime-web there: npm pack onnxruntime-web"):
        find_runtime(tmp_path)
    (tmp_path / "package" / "dist").mkdir(parents=True)
    for name in RUNTIME_FILES:
        (tmp_path / "package" / "dist" / name).touch()
    assert find_runtime(tmp_path) == tmp_path / "package" / "dist"

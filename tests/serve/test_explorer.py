"""Endpoints of the page: facts, samples, the attention message over HTTP; and the page's files themselves."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import CLASSES, served, tiny_swin, tiny_vit
from starlette.testclient import TestClient

from command_line import Typed
from vitrail.serve.app import create_app
from vitrail.serve.explorer import (
    ExplorerAnswer,
    accepts_gzip,
    attention_bytes,
    folder_samples,
    package_samples,
    sample_id,
)
from vitrail.serve.page import STATIC
from vitrail.serve.settings import ServeSettings

BINARY = {"Content-Type": "application/octet-stream", "Accept-Encoding": "identity"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "vit": served("vit", tiny_vit(), folder / "vit"),
        "swin": served("swin", tiny_swin(), folder / "swin", calibrated=False),
    }


@pytest.fixture(scope="module")
def client(models: dict[str, Any]) -> Iterator[TestClient]:
    settings = ServeSettings(access_log=False, max_body_bytes=100_000, max_pixels=10_000)
    with TestClient(create_app(models, settings)) as opened:
        yield opened


def png(side: int = 40) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def header_of(message: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<I", message, 4)
    return json.loads(message[8 : 8 + length])


def test_facts_say_what_each_model_offers(client: TestClient) -> None:
    answer = ExplorerAnswer.model_validate(client.get("/v1/explorer").json())
    vit, swin = answer.models["vit"], answer.models["swin"]
    assert vit.attention is not None
    assert (vit.attention.layers, vit.attention.heads, vit.attention.grid, vit.why) == (3, 2, (4, 4), "")
    assert swin.attention is None
    assert "no attention over the whole image" in swin.why


def test_samples_are_images_of_the_package(client: TestClient) -> None:
    listed = client.get("/v1/explorer").json()["samples"]
    assert [one["name"] for one in listed][-1] == "ankle boot"
    for one in listed:
        answer = client.get(f"/v1/samples/{one['id']}")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (28, 28)


@pytest.mark.parametrize("name", ["10-hat", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "0-t-shirt.png"])
def test_other_samples_there_are_none(client: TestClient, name: str) -> None:
    assert client.get(f"/v1/samples/{name}").status_code == 404


def test_samples_of_a_folder_are_read_once_and_have_no_paths(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(30):
        (tmp_path / "in" / f"A Photo {number:02}.png").write_bytes(png(8))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    found = folder_samples(tmp_path)
    assert len(found) <= 24
    assert found[0].id == "0-a-photo-00"
    assert found[0].media_type == "image/png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="holds no images that can be read"):
        folder_samples(tmp_path / "empty")


def test_a_folders_samples_take_the_place_of_the_packages(models: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "leaf.png").write_bytes(png(8))
    app = create_app(models, ServeSettings(access_log=False), samples=folder_samples(tmp_path))
    with TestClient(app) as opened:
        assert opened.get("/v1/explorer").json()["samples"] == [{"id": "0-leaf", "name": "leaf"}]
        assert opened.get("/v1/samples/0-leaf").content == png(8)


def test_a_folder_without_images_is_refused_as_typed(vitrail: Typed, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    said = vitrail("serve", tmp_path / "run", "--samples", tmp_path)
    assert said.code != 0
    assert "holds no images that can be read" in said.err


def test_ids_are_safe_in_addresses() -> None:
    assert sample_id(3, "Ankle Boot/../é?#") == "3-ankle-boot"
    assert sample_id(3, "…") == "3"
    assert len({one.id for one in package_samples()}) == 10


def test_the_message_is_the_same_in_every_form_of_the_body(client: TestClient, models: dict[str, Any]) -> None:
    raw = client.post("/v1/attention?model=vit", content=png(), headers=BINARY)
    form = client.post("/v1/attention?model=vit", files={"image": png()}, headers={"Accept-Encoding": "identity"})
    zipped = client.post("/v1/attention?model=vit", content=png(), headers=BINARY | {"Accept-Encoding": "gzip"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert zipped.headers["vary"] == "Accept-Encoding"
    assert raw.content == form.content == zipped.content
    assert "content-encoding" not in raw.headers
    assert header_of(raw.content)["layers"] == [0, 1, 2]
    own = attention_bytes(
        models["vit"].model,
        models["vit"].predictor.preprocessing,
        png(),
        layers=None,
        max_pixels=10_000,
        gzipped=True,
    )
    assert gzip.decompress(own) == raw.content


def test_some_layers(client: TestClient) -> None:
    answer = client.post("/v1/attention?model=vit&layers=-1,0", content=png(), headers=BINARY)
    assert header_of(answer.content)["layers"] == [2, 0]


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ("model=vit", b"no image", 422, "can't be read|not an image|no image|image"),
        ("model=vit", b"", 422, "empty"),
        ("model=vit&layers=7", png(), 422, "layer 7 does not exist"),
        ("model=vit&layers=x", png(), 422, "layers"),
        ("model=swin", png(), 422, "attention over the whole image"),
        ("model=elf", png(), 404, "none of vit, swin"),
        ("model=vit", png(110), 422, "pixels"),
        ("model=vit", bytes(100_001), 413, "larger than"),
    ],
)
def test_refusals_are_one_line(client: TestClient, query: str, body: bytes, status: int, words: str) -> None:
    answer = client.post(f"/v1/attention?{query}", content=body, headers=BINARY)
    assert answer.status_code == status
    assert re.search(words, answer.json()["detail"])
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("header", "takes"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
    ],
)
def test_gzip_where_it_is_accepted(header: str, takes: bool) -> None:
    assert accepts_gzip(header) is takes


def test_classes_reach_the_page(client: TestClient) -> None:
    assert client.get("/v1/model").json()["models"][0]["classes"] == list(CLASSES)


# --------------------------------------------------------------------------------------------------------------------
# The files


def test_the_page_keeps_the_policy_of_its_server() -> None:
    """No inline script, style or handler, and nothing from elsewhere: the policy would refuse it."""
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page)
    assert all("src=" in script for script in re.findall(r"<script[^>]*>", page))
    for path in STATIC.rglob("*"):
        if path.suffix in (".js", ".css", ".html"):
            addresses = re.findall(r"https?://[^\s\"'`)]+", path.read_text())
            assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path.name
            assert "eval(" not in path.read_text()
            assert "innerHTML" not in path.read_text(), f"{path.name}: names of classes and files are not markup"


def test_every_module_is_there_and_used() -> None:
    folder, waiting, seen = STATIC / "js", ["main.js"], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += re.findall(r'from "\./([a-z]+\.js)"', (folder / name).read_text())
    assert seen == {path.name for path in folder.iterdir()}


def test_every_module_says_what_it_is_for_and_is_small() -> None:
    for path in (STATIC / "js").iterdir():
        lines = path.read_text().splitlines()
        assert lines[0].startswith("// "), path.name
        assert len(lines) <= 260, path.name

"""What docs/serve.md shows is so: its curl lines and its client run against a server, its tables are complete."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
import uvicorn
from PIL import Image
from serving import CLASSES, LONG, app_of, picture

from vitrail.serve.models import ServedModel
from vitrail.serve.server import address_of, bind
from vitrail.serve.settings import ServeSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
SHOWN = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def address(model: ServedModel) -> Iterator[str]:
    """A server in a thread."""
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app_of(model), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield address_of(listener)
        server.should_exit = True
        thread.join(LONG)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("PHOTO.jpg", "ANOTHER.jpg")):
        (tmp_path / name).write_bytes(picture(seed, kind="JPEG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_lines_run(address: str, here: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 5
    for line in lines:
        command = line.replace("curl ", "curl --silent --show-error --fail ", 1).replace(SHOWN, address)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=LONG)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.startswith('{"model') or "--output" in line
    assert Image.open(here / "map.png").format == "PNG"


def test_the_python_client_runs(address: str, here: Path) -> None:
    (client,) = (block for block in blocks("python") if "httpx" in block)
    function = client[client.index("def predict") : client.index("\n\n\nfor ")]
    assert len(function.splitlines()) <= 10
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(client.replace(SHOWN, address), str(PAGE), "exec"), {})
    name, label, probability = out.getvalue().split()
    assert (name, label in CLASSES, 0 < float(probability) <= 1) == ("PHOTO.jpg", True, True)


def test_the_app_of_the_page_is_one(here: Path, animals: Path) -> None:
    (own,) = (block for block in blocks("python") if "create_app" in block)
    shutil.copytree(animals, here / "RUN")
    names: dict[str, object] = {}
    exec(own.partition("uvicorn.run")[0], names)
    assert "app" in names


def test_the_page_names_every_address_and_limit(model: ServedModel) -> None:
    text, app = PAGE.read_text(), app_of(model)
    for path, operations in app.openapi()["paths"].items():
        if path.startswith(("/v1/predict", "/v1/embed", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics")):
            for method, operation in operations.items():
                assert f"`{method.upper()} {path}`" in text, path
                row = next(line for line in text.splitlines() if f"`{method.upper()} {path}`" in line)
                assert all(f"`{parameter['name']}`" in row for parameter in operation.get("parameters", []))
    defaults = {one.name: one.default for one in fields(ServeSettings)}
    for value in (
        f"| {defaults['max_body_bytes'] // 1_000_000} MB |",
        f"| {defaults['max_inside_bytes'] // 1_000_000} MB |",
        f"| {defaults['max_images']} |",
        f"| {defaults['queue_images']} |",
        f"| {defaults['timeout_s']:g} s |",
        f"| {defaults['body_timeout_s']:g} s |",
        f"| {defaults['max_pixels'] // 1_000_000} million |",
        f"| {defaults['decode_timeout_s']:g} s |",
        f"| {defaults['queue_explanations']}, {defaults['explain_timeout_s']:g} s |",
    ):
        assert value in text, value


def test_a_server_on_a_socket_answers(address: str) -> None:
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}

"""`vitrail serve` as typed: a process that serves, drains at its end, and mistakes in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

from command_line import Typed
from vitrail import create_model
from vitrail.commands import serve
from vitrail.settings import Preprocessing
from vitrail.weights import save_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three classes."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    model = create_model("Ti/8", img_size=16, num_classes=3, depth=1, embed_dim=16, num_heads=2)
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.classes = ("ant", "bee", "cat")
    save_model(model, folder, data="animals")
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (20, 24), (200, 80, 40)).save(path)
    return path


@contextmanager
def serving(*words: str | Path, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, with its address."""
    command = [sys.executable, "-m", "vitrail", "serve", *map(str, words), "--port", "0", "--backend", "fp32"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.fullmatch(r"Serving .+ on (http://\S+)\n", line)
            if address is None:
                process.kill()
                pytest.fail(f"{line!r} {process.communicate()[1]}")
            yield address[1], process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def is_open(address: str) -> bool:
    """Return whether a server takes connections."""
    try:
        return httpx.get(f"{address}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_server_answers_refuses_and_ends(run: Path, photo: Path) -> None:
    with serving(run, f"again={run}", "--max-body", "0.1") as (address, process):
        answer = httpx.post(f"{address}/v1/predict", content=photo.read_bytes(), headers={"Content-Type": "image/png"})
        assert answer.json()["predictions"][0]["label"] in ("ant", "bee", "cat")
        assert [one["name"] for one in httpx.get(f"{address}/v1/model").json()["models"]] == ["tiny", "again"]
        assert httpx.get(f"{address}/v1/model", headers={"Host": "evil.example"}).status_code == 421
        for body in (bytes(5_000_000), (bytes(50_000) for _ in range(100))):  # declared, and chunked
            refused = httpx.post(f"{address}/v1/predict", content=body, headers={"Content-Type": "image/png"})
            assert refused.status_code == 413
        taken = subprocess.run(
            [sys.executable, "-m", "vitrail", "serve", run, "--port", address.rpartition(":")[2]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 2
        assert re.fullmatch(r"vitrail: port \d+ of 127\.0\.0\.1 is taken; .*--port.*\n", taken.stderr)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]  # behind what is assumed of the weights
        assert [line["status"] for line in lines] == [200, 200, 421, 413, 413]


def test_requests_inside_are_answered_at_the_end(run: Path, photo: Path) -> None:
    """A body that is still arriving when the signal comes is awaited."""
    with serving(run, "--quiet") as (address, process):
        host, port = address.removeprefix("http://").split(":")
        contents = photo.read_bytes()
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(contents)}\r\n"
            client.sendall(f"{head}Content-Type: image/png\r\n\r\n".encode() + contents[:10])
            assert httpx.get(f"{address}/healthz").status_code == 200  # by then the server has read the head
            process.send_signal(signal.SIGTERM)
            while is_open(address):
                pass
            client.sendall(contents[10:])
            client.settimeout(60)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        assert process.wait(60) == 0


@pytest.mark.slow
def test_a_token_comes_from_the_environment(run: Path) -> None:
    with serving(run, "--host", "0.0.0.0", "--quiet", VITRAIL_TOKEN="t0ken") as (address, process):
        local = address.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{local}/v1/model").status_code == 401
        assert httpx.get(f"{local}/v1/model", headers={"Authorization": "Bearer t0ken"}).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_token_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.TOKEN, "of the environment")
    (tmp_path / "token").write_text("t0ken\n")
    args = serve.make_parser().parse_args(["RUN", "--token-file", str(tmp_path / "token"), "--host", "0.0.0.0"])
    assert serve.settings_of(args).token == "t0ken"
    assert serve.settings_of(args).hosts == ()


def test_names_of_the_server_are_those_of_loopback_and_others_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.TOKEN, raising=False)
    args = serve.make_parser().parse_args(["RUN", "--host", "127.0.0.9", "--allow-host", "models.example"])
    assert serve.settings_of(args).hosts == ("localhost", "127.0.0.1", "[::1]", "127.0.0.9", "models.example")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["RUN", "--host", "0.0.0.0"], "0.0.0.0 can be reached by other machines, and there is no token; set VITRAIL_TOKEN"),
        (["RUN", "--host", "not a host", "--no-token"], 'host "not a host" is no address of this machine'),
        (["RUN", "--port", "99999"], "port 99999 is none"),
        (["nothing-here", "--port", "0"], "nothing-here"),
        (["RUN", "RUN", "--port", "0"], 'two models are called "tiny"'),
        (["RUN", "--port", "0", "--queue", "0"], "--queue"),
        (["RUN", "--port", "0", "--timeout", "-1"], "timeout_s -1.0 must be a number above 0"),
        (["RUN", "--port", "0", "--token-file", "EMPTY"], "is empty; write the token into it"),
        (["RUN", "--port", "0", "--allow-origin", "example.org"], 'origin "example.org" is no origin'),
        (["RUN", "--port", "0", "--backend", "fast"], 'backend "fast" is none of'),
        (["RUN", "--prot", "0"], "did you mean --port"),
        ([], "see vitrail serve --help"),
    ],
)
def test_mistakes_are_one_line(
    vitrail: Typed, run: Path, tmp_path: Path, words: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VITRAIL_TOKEN", raising=False)
    (tmp_path / "empty").touch()
    named = {"RUN": str(run), "EMPTY": str(tmp_path / "empty")}
    said = vitrail("serve", *(named.get(word, word) for word in words))
    assert said.code == 2
    assert line in said.err
    assert said.err.startswith("vitrail: ")
    assert said.err.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(vitrail: Typed, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., object] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest))
    said = vitrail("serve", run)
    assert (said.code, said.err) == (2, "vitrail: the server needs uvicorn: pip install 'vitrail[serve]'\n")


def test_its_help_has_every_limit(vitrail: Typed) -> None:
    said = vitrail("serve", "--help")
    assert said.code == 0
    assert all(option in said.out for option in ("--host", "--port", "--token-file", "--queue", "--timeout", "--max-body"))

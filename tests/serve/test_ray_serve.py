"""`vitrail serve --ray`: the same app from replicas, and service that goes on when one of them is killed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from command_line import TINY, Typed
from ray_cluster import is_alive, kill, ray_machines, wait_for, workers_of
from vitrail import cli
from vitrail.deploy import Predictor
from vitrail.serve import ray_serve
from vitrail.serve.ray_serve import Deployed, build_app, deployment_options, from_config
from vitrail.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded sample: two steps of a tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "first run"
    assert cli.main(["train", "fashion-sample", "--out", str(folder), "--no-report", *TINY]) == 0
    return folder


def picture() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def expected(run: Path) -> tuple[str, float]:
    best = Predictor(run, device="cpu", backend="fp32").predict([Image.open(BytesIO(picture()))])[0]
    assert best.label is not None
    assert best.probability is not None
    return best.label, best.probability


def label_of(answer: Any) -> tuple[str, Any]:
    best = answer.json()["predictions"][0]
    return best["label"], pytest.approx(best["probability"], abs=1e-5)


def test_a_replica_s_app_is_the_server_s(run: Path) -> None:
    with TestClient(build_app(Deployed(runs=(f"first={run}",), backend="fp32"), ServeSettings())) as client:
        answer = client.post("/v1/predict", content=picture(), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text
        assert expected(run) == label_of(answer)
        assert client.get("/healthz").status_code == 200


def test_ray_is_told_how_many_replicas() -> None:
    options = deployment_options(Deployed(runs=("RUN",), replicas=(3, 3), cpus=4, gpus=0.5), ServeSettings(queue_images=100))
    assert options["num_replicas"] == 3
    assert options["max_ongoing_requests"] == 200
    assert options["ray_actor_options"] == {"num_cpus": 4, "num_gpus": 0.5}
    options = deployment_options(Deployed(runs=("RUN",), replicas=(1, 8)), ServeSettings(batch_size=16))
    assert options["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 16}
    assert "num_replicas" not in options


def test_a_config_file_names_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_serve, "application", lambda deployed, settings: (deployed, settings))
    (tmp_path / "token").write_text("secret\n")
    deployed, settings = from_config(
        {"runs": ["a=/runs/a"], "replicas": [1, 4], "max_images": 8, "token_file": str(tmp_path / "token")}
    )
    assert deployed == Deployed(runs=("a=/runs/a",), replicas=(1, 4))
    assert settings == ServeSettings(max_images=8, token="secret")
    (tmp_path / "token").write_text("\n")
    for arguments, message in (
        ({"runs": ["a"], "queue": 3}, '"queue" is no setting'),
        ({"runs": ["a"], "token": "secret"}, '"token" is no setting'),
        ({"max_images": 8}, "the arguments name no run"),
        ({"runs": ["a"], "token_file": str(tmp_path / "token")}, "is empty; write the token into it"),
    ):
        with pytest.raises(ValueError, match=message):
            from_config(arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replicas", "2"], "--replicas is for --ray; add it, or leave it out"),
        (["--ray", "--replicas", "0"], '"0" is no number of workers'),
        (["--ray", "--port", "0"], "every machine of the cluster listens on the same port"),
        (["--ray", "--host", "0.0.0.0"], "can be reached by other machines, and there is no token"),
    ],
)
def test_mistakes_are_one_line(vitrail: Typed, run: Path, words: list[str], message: str) -> None:
    said = vitrail("serve", run, *words)
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_without_ray_a_line_names_the_extra(vitrail: Typed, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    said = vitrail("serve", run, "--ray")
    assert said.code == 2
    assert "pip install 'vitrail[ray]'" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_service_goes_on_after_a_replica_is_killed(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "vitrail", "serve", str(run), "--ray", "--port", str(port), "--replicas", "2"]
    words += ["--replica-cpus", "1", "--backend", "fp32", "--device", "cpu"]
    with ray_machines(1, cpus=2) as cluster, subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == f"Serving first-run on http://127.0.0.1:{port} of every machine with a replica\n"
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

                def predict() -> httpx.Response:
                    return client.post("/v1/predict", content=picture(), headers={"Content-Type": "image/png"})

                assert label_of(predict()) == expected(run)
                assert client.get("/readyz").status_code == 200
                assert client.post("/v1/predict", content=b"garbage").status_code in (200, 415, 422)
                replicas = workers_of(cluster, "ray::ServeReplica:vitrail")
                assert len(replicas) == 2
                kill(replicas[0])
                wait_for(lambda: not is_alive(replicas[0]))
                wait_for(lambda: predict().status_code == 200)
                assert label_of(predict()) == expected(run)
                after = wait_for(lambda: len(now := workers_of(cluster, "ray::ServeReplica:vitrail")) == 2 and now)
                assert replicas[1] in after
                assert replicas[0] not in after
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=300) == 0
            wait_for(lambda: not workers_of(cluster, "ray::ServeReplica:vitrail"))
        finally:
            process.kill()

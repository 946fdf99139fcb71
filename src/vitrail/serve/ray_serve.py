"""The server as a deployment of Ray Serve: the same app and the same batches in every replica; the number of them is Ray's."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vitrail.deploy.ray_data import connected, require_ray
from vitrail.serve.settings import ServeSettings

NAME = "vitrail"
"""Name of the application and of its deployment in Ray."""
_CPUS = 2
_PROXY_S = 120


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """Configuration of a deployment: models, and the resources of each replica."""

    runs: tuple[str, ...]
    """Runs or checkpoints, as `load_models` takes them, at the same place on every machine of the cluster."""
    replicas: tuple[int, int] = (1, 1)
    """Smallest and largest number; between them Ray scales with the requests that are being answered."""
    cpus: int = _CPUS
    """CPUs of a replica."""
    gpus: float = 0
    """GPUs of a replica, or the share of one."""
    device: str = "auto"
    backend: str = "auto"
    calibrated: bool = True
    samples: str | None = None
    """Folder whose images the page offers, on every machine of the cluster; None: those of the package."""


def application(deployed: Deployed, settings: ServeSettings) -> Any:
    """Return the application for `ray.serve.run`. Raises ValueError where Ray Serve is missing."""
    serve = require_serve()

    def build() -> FastAPI:  # in the replica: a model does not travel
        return build_app(deployed, settings)

    return serve.deployment(serve.ingress(build)(), **deployment_options(deployed, settings)).bind()


def deployment_options(deployed: Deployed, settings: ServeSettings) -> dict[str, Any]:
    """Return what Ray needs to know of the deployment: its size, its resources and how much it answers at a time."""
    least, most = deployed.replicas
    scale: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scale = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": settings.batch_size,  # one batch is computed while the next one fills
            }
        }
    return {
        "name": NAME,
        "max_ongoing_requests": 2 * settings.queue_images,  # the app itself refuses what has no room, at once and with 429
        "graceful_shutdown_timeout_s": settings.drain_timeout_s,
        "ray_actor_options": {"num_cpus": deployed.cpus, "num_gpus": deployed.gpus},
        **scale,
    }


def build_app(deployed: Deployed, settings: ServeSettings) -> FastAPI:
    """Return the app of a replica, with its models loaded."""
    import torch

    from vitrail.serve.app import create_app
    from vitrail.serve.explorer import folder_samples
    from vitrail.serve.models import load_models

    torch.set_num_threads(max(1, deployed.cpus))
    models = load_models(
        deployed.runs,
        device=deployed.device,
        batch_size=settings.batch_size,
        backend=deployed.backend,
        calibrated=deployed.calibrated,
    )
    return create_app(models, settings, samples=None if deployed.samples is None else folder_samples(Path(deployed.samples)))


def from_config(arguments: dict[str, Any]) -> Any:
    """Return the application for a Serve config file, whose `import_path` is `vitrail.serve.ray_serve:from_config`.

    `arguments` has the fields of `Deployed` and of `ServeSettings`; the token is read from the file `token_file`, which never
    stands in the config itself. Raises ValueError for a field that does not exist.
    """
    given = dict(arguments)
    token_file = given.pop("token_file", None)
    parts: list[dict[str, Any]] = []
    for kind in (Deployed, ServeSettings):
        names = [field.name for field in dataclasses.fields(kind) if field.name != "token"]
        parts.append({name: _tupled(given.pop(name)) for name in names if name in given})
    if given:
        raise ValueError(f'"{next(iter(given))}" is no setting of a deployment or of the server; see docs/scale.md')
    if "runs" not in parts[0]:
        raise ValueError("the arguments name no run; add runs: [PATH]")
    if token_file is not None:
        parts[1]["token"] = Path(token_file).read_text(encoding="utf-8").strip()
        if not parts[1]["token"]:
            raise ValueError(f"{token_file} is empty; write the token into it")
    return application(Deployed(**parts[0]), ServeSettings(**parts[1]))


def serve_on_ray(deployed: Deployed, settings: ServeSettings, *, host: str, port: int, started: Callable[[], object]) -> None:
    """Deploy on the cluster of RAY_ADDRESS, or on a local one, until SIGTERM or Ctrl-C; then requests inside are answered.

    Raises ValueError where Ray Serve is missing or the deployment does not start.
    """
    serve, stop = require_serve(), threading.Event()
    with connected() as ray:
        with contextlib.suppress(ray.exceptions.RayActorError):  # Ray starts a slow proxy again, which is waited for below
            serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            serve.run(application(deployed, settings), name=NAME, route_prefix="/")
            _wait_for_proxies(serve, stop)
            started()
            stop.wait()
        except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            raise ValueError(f"Ray Serve could not start the deployment: {error}") from error
        finally:
            serve.shutdown()
            for number, handler in before.items():
                signal.signal(number, handler)


def _wait_for_proxies(serve: Any, stop: threading.Event) -> None:
    """Wait until the machines listen, which Ray begins when the replicas are there. Raises TimeoutError where none does."""
    for _ in range(_PROXY_S):
        states = [str(state.value) for state in serve.status().proxies.values()]
        if "HEALTHY" in states and "STARTING" not in states:
            return
        if stop.wait(1):
            return
    raise TimeoutError(f"after {_PROXY_S} s no machine listens on the port; is it taken?")


def require_serve() -> Any:
    """Return the module `ray.serve`. Raises ValueError where it is missing."""
    require_ray()
    try:
        from ray import serve
    except ImportError as error:
        raise ValueError(f"--ray needs Ray Serve ({error}): pip install 'vitrail[ray]'") from error
    return serve


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

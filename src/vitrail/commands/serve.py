"""`vitrail serve`: predictions, embeddings and explanations over HTTP, with a page."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail import terminal

if TYPE_CHECKING:
    from vitrail.serve.settings import ServeSettings

USAGE = "serve RUN [RUN…]"
SUMMARY = "predictions, embeddings and explanations over HTTP, with a page"
NEEDS = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
"""Modules of the extra `serve`, with the names of their packages."""
TOKEN = "VITRAIL_TOKEN"
"""Environment variable of the token."""

HELP = f"""Serves models over HTTP: POST /v1/predict, /v1/embed and /v1/explain, GET /v1/model, and a page at /.

  vitrail serve runs/first                                    on http://127.0.0.1:8000, for this machine alone
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/predict
  vitrail serve old=runs/first new=runs/second                two models; ?model=new chooses
  {TOKEN}=… vitrail serve runs/first --host 0.0.0.0   for other machines, with a token"""


def make_parser() -> terminal.Parser:
    """Return the parser, whose defaults are those of the settings."""
    from vitrail.serve.settings import ServeSettings

    default = ServeSettings()
    parser = terminal.make_parser(
        "serve",
        HELP,
        "Ctrl-C and SIGTERM end it, after the requests inside are answered. Limits that have no option here are those of\n"
        "vitrail.serve.settings.ServeSettings.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run, or any checkpoint with a head; NAME=RUN gives it a name [the folder's]"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port; 0 for any that is free [8000]")
    parser.add_argument("--token-file", metavar="FILE", help=f"file with the token that requests need [the variable {TOKEN}]")
    parser.add_argument("--no-token", action="store_true", help="let other machines ask without a token")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="let pages of this origin call the server (CORS)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which clients may call the server [on loopback localhost, 127.0.0.1 and [::1]; else any]",
    )
    parser.add_argument(
        "--queue", type=terminal.count, default=default.queue_images, metavar="N",
        help=f"images of a model that may wait; more are refused with 429 [{default.queue_images}]",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=default.timeout_s, metavar="S",
        help=f"seconds to the answer; a later one is 503 [{default.timeout_s:g}]",
    )  # fmt: skip
    parser.add_argument(
        "--max-body", type=float, default=default.max_body_bytes / 1e6, metavar="MB",
        help=f"largest body of a request [{default.max_body_bytes / 1e6:g}]",
    )  # fmt: skip
    parser.add_argument(
        "--max-images", type=terminal.count, default=default.max_images, metavar="N",
        help=f"images of a request [{default.max_images}]",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=Path, metavar="FOLDER",
        help="offer images of this folder on the page, to everybody who opens it [some of Fashion-MNIST]",
    )  # fmt: skip
    parser.add_argument("--uncalibrated", action="store_true", help="probabilities without the temperature of the model's card")
    parser.add_argument("--quiet", action="store_true", help="no line for each request")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="as `vitrail predict --help` lists them [auto]")
    terminal.add_device(parser, batch_size=default.batch_size)
    group = parser.add_argument_group(
        "past one machine", "The Ray cluster of RAY_ADDRESS, or one that starts here. All its machines see the runs."
    )
    group.add_argument(
        "--ray", action="store_true", help="deploy on a Ray cluster, with Ray Serve; machines with a replica listen"
    )
    group.add_argument("--replicas", metavar="N|MIN-MAX", help="number of servers; in a range Ray adapts it to the load [1]")
    group.add_argument("--replica-cpus", type=terminal.count, metavar="N", help="CPUs of a replica [2]")
    group.add_argument(
        "--replica-gpus", type=float, metavar="N", help="GPUs of a replica, or the share of one [0; 1 with --device cuda]"
    )
    return parser


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = make_parser()
    args = terminal.parse(parser, words)
    require_extra()
    settings = settings_of(args)

    from vitrail.serve.explorer import folder_samples

    samples = None if args.samples is None else folder_samples(args.samples)
    if args.ray:
        return _serve_on_ray(args, settings)
    if given := [name for name in ("replicas", "replica_cpus", "replica_gpus") if getattr(args, name) is not None]:
        raise ValueError(f"--{given[0].replace('_', '-')} is for --ray; add it, or leave it out")

    from vitrail.serve.models import load_models
    from vitrail.serve.server import address_of, bind, serve

    listener = bind(args.host, args.port)  # before the models are loaded, which takes longer
    with listener:
        models = load_models(
            args.runs,
            device=args.device,
            batch_size=args.batch_size,
            backend=args.backend,
            calibrated=not args.uncalibrated,
        )
        for model in models.values():
            terminal.print_receipt(model.model, model.source)
        line = f"Serving {', '.join(models)} on {address_of(listener)}"
        serve(models, settings, listener, samples=samples, started=lambda: print(line, flush=True))
    return terminal.OK


def _serve_on_ray(args: argparse.Namespace, settings: ServeSettings) -> int:
    """Serve from replicas on a Ray cluster."""
    from vitrail.deploy.ray_data import parse_workers
    from vitrail.serve.models import load_models
    from vitrail.serve.ray_serve import Deployed, require_serve, serve_on_ray

    require_serve()
    if not args.port:
        raise ValueError("with --ray every machine of the cluster listens on the same port; name one: --port 8000")
    gpus = args.replica_gpus if args.replica_gpus is not None else float(args.device.startswith("cuda"))
    deployed = Deployed(
        runs=tuple(map(_absolute, args.runs)),
        replicas=parse_workers(args.replicas or "1"),
        cpus=args.replica_cpus or Deployed.cpus,
        gpus=gpus,
        device=args.device,
        backend=args.backend,
        calibrated=not args.uncalibrated,
        samples=None if args.samples is None else str(args.samples.resolve()),
    )
    models = load_models(args.runs, device="cpu", batch_size=args.batch_size)  # what is wrong with them is reported here
    for model in models.values():
        terminal.print_receipt(model.model, model.source)
        model.close()
    names = ", ".join(models)
    where = f"http://{args.host}:{args.port} of every machine with a replica"
    serve_on_ray(
        deployed,
        settings,
        host=args.host,
        port=args.port,
        started=lambda: print(f"Serving {names} on {where}", flush=True),
    )
    return terminal.OK


def _absolute(text: str) -> str:
    """Return NAME=RUN with the absolute path of a run that is one."""
    from vitrail.serve.models import split_name

    name, run = split_name(text)
    path = os.path.abspath(os.path.expanduser(run))
    return f"{name}={path if os.path.exists(path) else run}"


def require_extra() -> None:
    """Raise ValueError where a library of the extra is missing."""
    missing = [package for module, package in NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"the server needs {', '.join(missing)}: pip install 'vitrail[serve]'")


def settings_of(args: argparse.Namespace) -> ServeSettings:
    """Return the settings that the options make. Raises ValueError for a host that others reach, without a token."""
    from vitrail.serve.settings import LOOPBACK_NAMES, ServeSettings, is_loopback

    token = read_token(args.token_file)
    if token is None and not args.no_token and not is_loopback(args.host):
        raise ValueError(
            f"{args.host} can be reached by other machines, and there is no token; set {TOKEN}, give --token-file, "
            "or add --no-token to let everybody ask"
        )
    if token is not None and args.no_token:
        raise ValueError(f"there is a token, and --no-token asks for none; leave one of them out (the variable is {TOKEN})")
    return ServeSettings(
        token=token,
        origins=tuple(args.allow_origin),
        hosts=(*((*LOOPBACK_NAMES, args.host) if is_loopback(args.host) else ()), *args.allow_host),
        access_log=not args.quiet,
        batch_size=args.batch_size,
        queue_images=args.queue,
        timeout_s=args.timeout,
        max_body_bytes=int(args.max_body * 1e6),
        max_images=min(args.max_images, args.queue),
    )


def read_token(file: str | None) -> str | None:
    """Return the token of a file, or of the environment; None where there is neither. Raises ValueError for an empty one."""
    if file is None:
        return os.environ.get(TOKEN)
    token = Path(file).read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"{file} is empty; write the token into it")
    return token

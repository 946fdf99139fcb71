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
    return parser


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = make_parser()
    args = terminal.parse(parser, words)
    require_extra()
    settings = settings_of(args)

    from vitrail.serve.explorer import folder_samples
    from vitrail.serve.models import load_models
    from vitrail.serve.server import address_of, bind, serve

    samples = None if args.samples is None else folder_samples(args.samples)
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

"""The server's process: a socket that is bound first, then uvicorn on it."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import uvicorn

from vitrail.serve.app import create_app
from vitrail.serve.explorer import Sample
from vitrail.serve.models import ServedModel
from vitrail.serve.settings import ServeSettings

_BACKLOG = 2048
_KEEP_ALIVE_S = 30
_SWITCH_S = 0.0005
"""Time for which a thread keeps the interpreter while others wait; Python's 5 ms would make each hand-over late."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one. Raises ValueError for a host or port that can't be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port} is none; use one from 1024 to 65535, or 0 for any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise ValueError(f'host "{host}" is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all of them') from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"port {port} of {host} is taken; use another one with --port, or 0 for any that is free"
            ) from None
        if error.errno == errno.EACCES:
            raise ValueError(f"port {port} needs more rights; use one from 1024 on") from None
        raise ValueError(f"{host} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all of them") from None
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    models: Mapping[str, ServedModel],
    settings: ServeSettings,
    listener: socket.socket,
    *,
    samples: Sequence[Sample] | None = None,
    started: Callable[[], object],
) -> None:
    """Serve models on a socket until SIGTERM or Ctrl-C; requests inside are answered before it returns.

    `samples` are as for `create_app`.
    """
    app = create_app(models, settings, samples=samples)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_timeout_s) + 1,
        h11_max_incomplete_event_size=64 * 1024,
    )
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()  # modules and models stay: to look through them again would stop everything for 0.2 s
    started()
    try:
        _Server(config).run(sockets=[listener])
    finally:
        for model in models.values():
            model.close()


class _Server(uvicorn.Server):
    """uvicorn's server, for which a signal is the way to end and no failure."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at a second Ctrl-C without waiting for the requests inside."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

"""Middleware: access log and metrics, security headers, the token, and the limits of a body."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail.serve.problems import Problem, problem_response
from vitrail.serve.settings import ServeSettings

_LOG = logging.getLogger("vitrail.serve")
OPEN_PATHS = ("/healthz", "/readyz")
"""Endpoints that need no token."""
GUARDED = ("/v1/", "/metrics", "/openapi.json")
"""Beginnings of the paths that need it; the files of the page do not."""
API_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"geolocation=(), microphone=()"),
)


class Outermost:
    """Access log, metrics, and an answer for whatever goes wrong inside; HTTP alone passes."""

    def __init__(self, app: ASGIApp, *, observe: Callable[[str, str, int, float], object], log: bool) -> None:
        self.app, self.observe, self.log = app, observe, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, count it and write its line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0

        async def noting(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, scope["path"])
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientDisconnect:
            status = 499
        except Exception as error:
            if not isinstance(error, Problem):
                _LOG.exception("%s %s", scope["method"], scope["path"])
            if not status:
                problem = error if isinstance(error, Problem) else Problem(500, "an error of the server; its log says more")
                await problem.response()(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - start
            self.observe(_route(scope), scope["method"], status, seconds)
            if self.log:
                _write_line(scope, status, sent, seconds)


def _route(scope: Scope) -> str:
    """Return the path of the route, one of a few; "other" for the page and whatever does not exist."""
    return str(getattr(scope.get("route"), "path", "other"))


def _write_line(scope: Scope, status: int, sent: int, seconds: float) -> None:
    client = scope.get("client")
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "ms": round(1000 * seconds, 2),
        "received": scope.get("vitrail.received", 0),
        "sent": sent,
    }
    print(json.dumps(line), file=sys.stderr)


def _add_headers(message: MutableMapping[str, Any], path: str) -> None:
    guarded = path.startswith(GUARDED) or path in OPEN_PATHS
    headers = list(message["headers"])
    headers += HEADERS
    headers.append((b"content-security-policy", (API_POLICY if guarded else PAGE_POLICY).encode()))
    if guarded:
        headers.append((b"cache-control", b"no-store"))
    message["headers"] = headers


class RequireHost:
    """421 for a request to another name than those of the server.

    A page of the web can make its own name lead to this machine (DNS rebinding); a browser then lets it read what a server
    on loopback answers.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it calls the server by one of its names."""
        if scope["type"] == "http":
            name = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "").lower())
            if name not in self.hosts:
                await problem_response(421, "this server has another name; --allow-host NAME adds one")(scope, receive, send)
                return
        await self.app(scope, receive, send)


class RequireToken:
    """401 for a request without the token, where there is one."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it has the token."""
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, rest = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(b"Bearer " + rest, self.expected):
            await self.app(scope, receive, send)
            return
        headers = {"WWW-Authenticate": "Bearer"}
        await problem_response(401, "this server needs a token: Authorization: Bearer TOKEN", headers=headers)(
            scope, receive, send
        )


class LimitBody:
    """413 for a body above the limit, by its declared length or as it arrives; 408 for one that arrives too slowly.

    429 where the bodies of all requests, which stay in memory until their answers, would exceed their limit.
    """

    def __init__(self, app: ASGIApp, *, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings
        self.inside = 0
        """Bytes of the bodies of all requests inside."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, declared = self.settings.max_body_bytes, Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise self._too_large()
        deadline = 0.0

        async def counting() -> Message:
            nonlocal deadline
            loop = asyncio.get_running_loop()
            deadline = deadline or loop.time() + self.settings.body_timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Problem(408, "the body took too long to arrive", headers={"Connection": "close"}) from None
            more = len(message.get("body", b""))
            received = scope["vitrail.received"] = scope.get("vitrail.received", 0) + more
            self.inside += more
            if received > most:
                raise self._too_large()
            if self.inside > self.settings.max_inside_bytes:
                raise Problem(429, "too many bodies are inside", headers={"Retry-After": "1", "Connection": "close"})
            return message

        try:
            await self.app(scope, counting, send)
        finally:
            self.inside -= scope.get("vitrail.received", 0)

    def _too_large(self) -> Problem:
        return Problem(413, f"the body is larger than {self.settings.max_body_bytes:,} bytes", headers={"Connection": "close"})

"""Settings of the server: addresses, who may ask, and every limit. Needs neither torch nor FastAPI."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of the server, the same for all models. Raises ValueError for a value that makes no sense."""

    token: str | None = field(default=None, repr=False)
    """Bearer token that every request needs, except for the page, `/healthz` and `/readyz`; None: no token."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may call the server from a browser (CORS); none by default."""
    hosts: tuple[str, ...] = ()
    """Names by which clients may call the server (the header Host, without a port); none: any name."""
    access_log: bool = True
    """Write a JSON line to stderr for each request, without image data."""

    batch_size: int = 32
    """Images that one pass of the model takes at most."""
    queue_images: int = 256
    """Images of one model that are inside at a time: waiting, being decoded or computed. More are refused with 429."""
    decoders: int = 2
    """Threads that decode."""
    timeout_s: float = 10.0
    """Time to wait, to be decoded and computed, from when the body has arrived; a later answer is 503."""

    max_body_bytes: int = 32_000_000
    """Size of a request's body; a larger one is 413."""
    max_inside_bytes: int = 512_000_000
    """Bodies of all requests that are inside, in sum; the request that would exceed it is refused with 429."""
    body_timeout_s: float = 30.0
    """Time for the body to arrive; after that it is 408."""
    max_images: int = 64
    """Images of one request; more are 413."""
    max_pixels: int = 25_000_000
    """Pixels of an image, as its header states them; a larger one is not decoded."""
    decode_timeout_s: float = 5.0
    """Time to decode one image."""

    queue_explanations: int = 4
    """Explanations of one model that are inside at a time; more are refused with 429."""
    explain_timeout_s: float = 60.0
    """Time for an explanation; after that it is 503."""
    max_explain_steps: int = 50
    """Steps of insertion and deletion that a request may ask for."""
    drain_timeout_s: float = 30.0
    """Time for the requests inside to be answered when the server stops."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = 1 if isinstance(value, int) else 0
            if value < least or value == 0 or not math.isfinite(value):
                rule = "at least 1" if isinstance(value, int) else "a number above 0"
                raise ValueError(f"{one.name} {value} must be {rule}")
        if self.max_images > self.queue_images:
            raise ValueError(
                f"max_images {self.max_images} is above queue_images {self.queue_images}, so the largest request would never "
                "fit; use a longer queue, or fewer images a request"
            )
        if self.max_body_bytes > self.max_inside_bytes:
            raise ValueError(
                f"max_body_bytes {self.max_body_bytes} is above max_inside_bytes {self.max_inside_bytes}, so the largest body "
                "would never fit; allow more inside, or smaller bodies"
            )
        if self.token is not None and (
            not self.token.isascii() or not self.token.isprintable() or " " in self.token or not self.token
        ):
            raise ValueError("the token must be one or more visible ASCII characters without spaces")
        for origin in self.origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ValueError(f'origin "{origin}" is no origin; give one as in https://example.org')


LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine, for itself."""


def is_loopback(host: str) -> bool:
    """Return True for a host that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

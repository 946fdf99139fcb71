"""A client of an HTTP server that costs little: prepared bytes on plain sockets, in a closed loop or at a given rate."""

from __future__ import annotations

import asyncio
import math
import random
import re
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TICK_S = 0.001
_LAST_ANSWERS_S = 30.0


def request_bytes(path: str, body: bytes, kind: str, *, method: str = "POST") -> bytes:
    """A request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Outcome:
    """What became of the requests of one load."""

    seconds: float = 0.0
    sent: int = 0
    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    """By status; 0 is a connection that ended without an answer."""

    def note(self, status: int, latency_s: float) -> None:
        """Add an answer."""
        self.latencies_s.setdefault(status, []).append(latency_s)

    @property
    def answered(self) -> int:
        """Requests that got an answer."""
        return sum(len(values) for status, values in self.latencies_s.items() if status)

    def per_second(self, status: int = 200) -> float:
        """Answers of a status a second."""
        return len(self.latencies_s.get(status, [])) / self.seconds

    def percentile_ms(self, share: float, *statuses: int) -> float | None:
        """A percentile of the latencies of some statuses, of all without; None where there are none."""
        values = sorted(v for status, each in self.latencies_s.items() if not statuses or status in statuses for v in each)
        return 1000 * values[min(len(values) - 1, math.ceil(share * len(values)) - 1)] if values else None

    def summary(self) -> dict[str, Any]:
        """The figures that are kept."""
        return {
            "seconds": self.seconds,
            "sent": self.sent,
            "answered": self.answered,
            "statuses": {str(status): len(values) for status, values in sorted(self.latencies_s.items())},
            "p50_ms": self.percentile_ms(0.5, 200),
            "p99_ms": self.percentile_ms(0.99, 200),
            "refused_p99_ms": self.percentile_ms(0.99, 429),
        }


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    def __init__(self, done: Callable[[_Connection, int, float], None]) -> None:
        self.done, self.buffer, self.since = done, b"", 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, and is no instance of it

    def send(self, payload: bytes, since: float) -> None:
        assert self.transport is not None
        self.since = since
        self.transport.write(payload)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self.buffer, 0, end)
        if len(self.buffer) < end + 4 + (int(length[1]) if length else 0):
            return
        status, self.buffer = int(self.buffer[9:12]), b""
        since, self.since = self.since, 0.0
        self.done(self, status, time.perf_counter() - since)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.since:
            since, self.since = self.since, 0.0
            self.done(self, 0, time.perf_counter() - since)


async def closed_loop(port: int, payloads: Sequence[bytes], *, connections: int, seconds: float) -> Outcome:
    """Send on each connection the next request when the last one is answered."""
    loop, outcome, place = asyncio.get_running_loop(), Outcome(), 0
    idle = asyncio.Event()
    working, stop = 0, math.inf

    def send(connection: _Connection) -> None:
        nonlocal place
        outcome.sent, place = outcome.sent + 1, (place + 1) % len(payloads)
        connection.send(payloads[place], time.perf_counter())

    def done(connection: _Connection, status: int, latency_s: float) -> None:
        nonlocal working
        outcome.note(status, latency_s)
        if time.perf_counter() < stop and connection.transport is not None:
            send(connection)
            return
        working -= 1
        if not working:
            idle.set()

    opened = [(await loop.create_connection(lambda: _Connection(done), "127.0.0.1", port))[1] for _ in range(connections)]
    start = time.perf_counter()
    stop, working = start + seconds, len(opened)
    for connection in opened:
        send(connection)
    await asyncio.wait_for(idle.wait(), seconds + _LAST_ANSWERS_S)
    outcome.seconds = time.perf_counter() - start
    _close(opened)
    return outcome


async def open_loop(
    port: int, payloads: Sequence[bytes], *, rate: float, seconds: float, most_connections: int = 1000, seed: int = 0
) -> Outcome:
    """Send requests at random moments, `rate` a second on average, whether or not the last ones are answered.

    A latency counts from the moment when the request was due, so a client or server that lags behind does not hide it.
    """
    loop, outcome, draw = asyncio.get_running_loop(), Outcome(), random.Random(seed)
    opened: list[_Connection] = []
    free: deque[_Connection] = deque()
    due: deque[float] = deque()
    opening = 0

    def done(connection: _Connection, status: int, latency_s: float) -> None:
        outcome.note(status, latency_s)
        if connection.transport is not None:
            free.append(connection)

    async def another() -> None:
        nonlocal opening
        connection = (await loop.create_connection(lambda: _Connection(done), "127.0.0.1", port))[1]
        opening -= 1
        opened.append(connection)
        free.append(connection)

    start = time.perf_counter()
    upcoming, tasks = start, set()
    while time.perf_counter() < start + seconds or due:
        now = time.perf_counter()
        while upcoming <= now and upcoming < start + seconds:
            due.append(upcoming)
            upcoming += draw.expovariate(rate)
        while due and free:
            connection = free.popleft()
            if connection.transport is not None:
                connection.send(payloads[outcome.sent % len(payloads)], due.popleft())
                outcome.sent += 1
        alive = sum(one.transport is not None for one in opened)
        for _ in range(min(len(due) - opening, most_connections - alive - opening)):
            opening += 1
            task = asyncio.ensure_future(another())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(_TICK_S)
        if now > start + seconds + _LAST_ANSWERS_S:
            break
    while (
        sum(map(len, outcome.latencies_s.values())) < outcome.sent and time.perf_counter() < start + seconds + _LAST_ANSWERS_S
    ):
        await asyncio.sleep(_TICK_S)
    outcome.seconds = seconds
    outcome.sent += len(due)
    _close(opened)
    return outcome


def _close(opened: Sequence[_Connection]) -> None:
    for connection in opened:
        if connection.transport is not None:
            connection.transport.close()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def counted(outcomes: Sequence[Outcome]) -> Counter[int]:
    """Answers by status, of several loads."""
    return sum((Counter({status: len(v) for status, v in one.latencies_s.items()}) for one in outcomes), Counter())

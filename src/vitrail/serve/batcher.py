"""Dynamic batches for a model behind asyncio: a bounded queue, deadlines, and threads beside the event loop.

An item is prepared (decoded) in one of several threads and computed in a batch with whatever else is ready: while the model is
busy items gather, and when it is free it takes them at once. Nothing waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Raw = TypeVar("Raw")
Ready = TypeVar("Ready")
Result = TypeVar("Result")

_LEAST_RETRY_S, _LONGEST_RETRY_S = 1, 60
_LOOKS = 4  # at the items that are being prepared, within the time that one may take
_SMOOTHING = 0.1  # weight of the newest batch in the running mean of seconds per item
_PREPARE_TURN_S = 0.002  # in which a task prepares items before it wakes who computes: that costs as much as a small image


class QueueFull(Exception):
    """The queue has no place for the items of a request."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s
        """Whole seconds after which the queue is likely to have places."""


class TooLate(Exception):
    """The deadline passed before there was a result."""


class TooSlow(Exception):
    """An item took too long to prepare; it is the result of that item."""


class Closed(Exception):
    """The batcher takes no more items."""


@dataclass(eq=False)
class _Request(Generic[Result]):
    """The items of one call of `submit`."""

    done: asyncio.Future[None]
    results: list[Result | Exception | None]
    missing: int
    abandoned: bool = False
    """Nobody waits for it any more."""


@dataclass(eq=False)
class _Job(Generic[Raw, Ready, Result]):
    """One item on its way."""

    request: _Request[Result]
    place: int
    raw: Raw | None
    ready: Ready | None = None
    result: Result | Exception | None = None
    settled: bool = False
    """Its request has its result, or an exception in its place."""


@dataclass(eq=False)
class _Stage(Generic[Raw, Ready, Result]):
    """A line of jobs, and the tasks of an executor that work it off."""

    executor: Executor
    work: Callable[[list[_Job[Raw, Ready, Result]]], None]
    sizes: tuple[int, ...]
    """Numbers of jobs that one call of `work` takes, in ascending order; the first is 1."""
    tasks: int
    """Tasks at a time."""
    turn_s: float = 0.0
    """Seconds after which a task begins no other call of `work` before it lets other users of the executor go first."""
    after: Callable[[], None] | None = None
    """Function that a task calls at its end."""
    line: deque[_Job[Raw, Ready, Result]] = field(default_factory=deque)
    running: int = 0
    """Tasks that work, or are about to."""
    working: int = 0
    """Those of them that have jobs."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, jobs: Sequence[_Job[Raw, Ready, Result]]) -> None:
        """Add jobs to the line, from any thread; `wake` follows."""
        with self.lock:
            self.line.extend(jobs)

    def wake(self) -> None:
        """Let as many tasks run as there are jobs for, from any thread."""
        with self.lock:
            more = min(self.tasks - self.running, len(self.line))
            self.running += more
        for _ in range(more):
            self.executor.submit(self._turn)

    def _turn(self) -> None:
        """Work, then queue behind the other users of the executor for more."""
        end = time.monotonic() + self.turn_s
        try:
            while jobs := self._take():
                try:
                    self.work(jobs)
                finally:
                    with self.lock:
                        self.working -= 1
                if time.monotonic() >= end:
                    break
        finally:
            with self.lock:
                again = bool(self.line)
                self.running -= not again
            if again:
                self.executor.submit(self._turn)
            if self.after is not None:
                self.after()

    def _take(self) -> list[_Job[Raw, Ready, Result]]:
        """Take a fair share of the line: the tasks that have no jobs get as many each."""
        with self.lock:
            share = -(-len(self.line) // (self.tasks - self.working))
            place = bisect.bisect_right(self.sizes, share) - 1
            self.working += place >= 0
            return [self.line.popleft() for _ in range(self.sizes[place])] if place >= 0 else []


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return the sizes of batches: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, … and the largest.

    There are few, because libraries prepare kernels for each size that they meet, and keep them.
    """
    steps = {step << power for power in range(most.bit_length()) for step in (1, 3)}
    return tuple(sorted({step for step in steps if step < most} | {most}))


class Batcher(Generic[Raw, Ready, Result]):
    """Items to results, in batches.

    `prepare` turns an item into what `compute` takes, in a thread of `preparers`; `compute` turns at most `batch_size` of them,
    as many as `batch_sizes` has, into results, in a thread of `workers`, `batches` calls at a time. An exception of `prepare`
    becomes the result of its item, one of `compute` that of its whole batch; an item that takes longer to prepare than
    `prepare_timeout_s` has TooSlow. At most `capacity` items are inside at a time; one that is too late or too slow stays
    inside until its thread is done with it, so that work which nobody waits for any more can't pile up. `on_batch` gets size
    and seconds of each batch, in the thread.
    """

    def __init__(
        self,
        prepare: Callable[[Raw], Ready],
        compute: Callable[[Sequence[Ready]], Sequence[Result]],
        *,
        preparers: Executor,
        workers: Executor,
        batch_size: int,
        capacity: int,
        threads: int = 2,
        batches: int = 1,
        prepare_timeout_s: float = math.inf,
        on_batch: Callable[[int, float], object] | None = None,
    ) -> None:
        self._prepare_one, self._compute_all = prepare, compute
        self.capacity = capacity
        self.inside = 0
        """Items that were admitted and have not left."""
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: deque[_Job[Raw, Ready, Result]] = deque()
        self._scheduled = False
        self._lock = threading.Lock()
        self._on_batch = on_batch
        self._seconds_per_item = 0.0
        self._prepare_timeout_s = prepare_timeout_s
        self._started: dict[_Job[Raw, Ready, Result], float] = {}
        self._watching = False
        self._computing = _Stage[Raw, Ready, Result](workers, self._compute, batch_sizes(batch_size), batches)
        self._preparing = _Stage[Raw, Ready, Result](
            preparers, self._prepare, (1,), threads, turn_s=_PREPARE_TURN_S, after=self._computing.wake
        )

    def require_room(self, count: int) -> None:
        """Raise QueueFull where `count` items have no place, and Closed where none are taken any more."""
        if self._closed:
            raise Closed("the server is stopping")
        if self.inside + count > self.capacity:
            raise QueueFull(self.retry_after_s())

    def retry_after_s(self) -> int:
        """Estimate the seconds until the items inside are done, as a whole number."""
        return min(_LONGEST_RETRY_S, max(_LEAST_RETRY_S, math.ceil(self.inside * self._seconds_per_item)))

    async def submit(self, items: Sequence[Raw], *, timeout_s: float) -> list[Result | Exception]:
        """Return the result of each item, in order, or the exception that it has instead.

        Raises QueueFull at once where they have no place, all or none, TooLate where the results take longer than
        `timeout_s`, and Closed.
        """
        self.require_room(len(items))
        if not items:
            return []
        loop = self._loop = asyncio.get_running_loop()
        request: _Request[Result] = _Request(loop.create_future(), [None] * len(items), len(items))
        self.inside += len(items)
        self._empty.clear()
        self._preparing.add([_Job(request, place, raw) for place, raw in enumerate(items)])
        self._preparing.wake()
        timer = loop.call_later(timeout_s, self._expire, request)
        if not self._watching and self._prepare_timeout_s < math.inf:
            self._watching = True
            loop.call_later(self._prepare_timeout_s / _LOOKS, self._watch)
        try:
            await request.done
        finally:
            timer.cancel()
            request.abandoned = True
        return [result for result in request.results if result is not None]

    def stop(self) -> None:
        """Take no more items."""
        self._closed = True

    async def close(self, timeout_s: float) -> bool:
        """Take no more items, and wait for those inside. Return whether all left in time."""
        self.stop()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @staticmethod
    def _expire(request: _Request[Result]) -> None:
        request.abandoned = True
        if not request.done.done():
            request.done.set_exception(TooLate("the result was not there in time"))

    # ----------------------------------------------------------------------------------------------------------------
    # In threads

    def _prepare(self, jobs: list[_Job[Raw, Ready, Result]]) -> None:
        for job in jobs:
            raw, job.raw = job.raw, None
            if job.request.abandoned:
                self._finish([job])
                continue
            self._started[job] = time.monotonic()
            try:
                job.ready = self._prepare_one(raw)  # type: ignore[arg-type]  # None only after this line
            except Exception as error:
                job.result = error
            finally:
                del self._started[job]
            if job.result is None and not job.settled:
                self._computing.add([job])
            else:
                self._finish([job])

    def _compute(self, jobs: list[_Job[Raw, Ready, Result]]) -> None:
        wanted = [job for job in jobs if not job.request.abandoned]
        if wanted:
            start = time.perf_counter()
            try:
                results = self._compute_all([job.ready for job in wanted])  # type: ignore[misc]  # they are prepared
                assert len(results) == len(wanted)
                for job, result in zip(wanted, results, strict=True):
                    job.result = result
            except Exception as error:
                for job in wanted:
                    job.result = error
            seconds = time.perf_counter() - start
            per_item = seconds / len(wanted) / self._computing.tasks  # others are computed meanwhile
            self._seconds_per_item += _SMOOTHING * (per_item - self._seconds_per_item)
            if self._on_batch is not None:
                self._on_batch(len(wanted), seconds)
        self._finish(jobs)

    def _finish(self, jobs: list[_Job[Raw, Ready, Result]]) -> None:
        """Hand jobs to the event loop, which is woken once for all that are there."""
        with self._lock:
            self._finished.extend(jobs)
            wake, self._scheduled = not self._scheduled, True
        if wake:
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                self._loop.call_soon_threadsafe(self._collect)

    # ----------------------------------------------------------------------------------------------------------------
    # In the event loop

    def _collect(self) -> None:
        with self._lock:
            jobs = list(self._finished)
            self._finished.clear()
            self._scheduled = False
        self.inside -= len(jobs)
        if not self.inside:
            self._empty.set()
        for job in jobs:
            self._settle(job, job.result)

    def _watch(self) -> None:
        """Give up on items that take too long to prepare; those that were prepared before them in a turn go on."""
        self._computing.wake()
        now = time.monotonic()
        for job, since in list(self._started.items()):
            if now - since > self._prepare_timeout_s:
                self._settle(job, TooSlow(f"it took longer than {self._prepare_timeout_s:g} s to decode"))
        self._watching = self.inside > 0
        if self._watching:
            asyncio.get_running_loop().call_later(self._prepare_timeout_s / _LOOKS, self._watch)

    @staticmethod
    def _settle(job: _Job[Raw, Ready, Result], result: Result | Exception | None) -> None:
        if job.settled:
            return
        job.settled = True
        request = job.request
        request.results[job.place] = result
        request.missing -= 1
        if not request.missing and not request.done.done():
            request.done.set_result(None)

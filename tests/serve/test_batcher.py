"""The batcher alone: order, batches, bounds, deadlines, errors and the end."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vitrail.serve.batcher import Batcher, Closed, QueueFull, TooLate, TooSlow, batch_sizes

LONG = 60.0
Numbers = Batcher[int, int, int]


class Doubling:
    """Work that doubles numbers, and can be held: `go` lets it on. Batches are noted."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.go, self.begun = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def compute(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.begun.set()
        assert self.go.wait(LONG)
        return [2 * item for item in items]


@contextmanager
def batcher(
    compute: Callable[[Sequence[int]], Sequence[int]],
    *,
    prepare: Callable[[int], int] = int,
    batch_size: int = 4,
    capacity: int = 64,
    batches: int = 1,
    **options: Any,
) -> Iterator[Numbers]:
    options |= {"batch_size": batch_size, "capacity": capacity, "batches": batches}
    with ThreadPoolExecutor(2) as preparers, ThreadPoolExecutor(batches) as workers:
        yield Batcher(prepare, compute, preparers=preparers, workers=workers, **options)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.001)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


@hypothesis_settings(max_examples=30)
@given(st.lists(st.lists(st.integers(), max_size=6), max_size=12), st.integers(1, 5), st.integers(1, 3))
def test_every_item_gets_its_own_result_in_batches_of_the_size(
    requests: list[list[int]], batch_size: int, batches: int
) -> None:
    work = Doubling()

    async def main() -> None:
        with batcher(work.compute, batch_size=batch_size, capacity=1000, batches=batches) as numbers:
            done = await asyncio.gather(*(numbers.submit(request, timeout_s=LONG) for request in requests))
            assert done == [[2 * item for item in request] for request in requests]
            assert numbers.inside == 0
            assert await numbers.close(LONG)

    run(main())
    assert sorted(item for batch in work.batches for item in batch) == sorted(item for each in requests for item in each)
    assert {len(batch) for batch in work.batches} <= {*batch_sizes(batch_size)}


@given(st.integers(1, 300))
def test_sizes_of_batches_are_few_and_close(most: int) -> None:
    sizes = batch_sizes(most)
    assert (sizes[0], sizes[-1]) == (1, most)
    assert len(sizes) <= 2 * most.bit_length()
    assert all(lower < upper <= max(lower + 1, 1.5 * lower) for lower, upper in pairwise(sizes))


def test_items_gather_while_the_model_is_busy() -> None:
    work = Doubling(held=True)
    prepared: list[int] = []

    def prepare(item: int) -> int:
        prepared.append(item)
        return item

    async def main() -> None:
        with batcher(work.compute, prepare=prepare, batch_size=4) as numbers:
            first = asyncio.create_task(numbers.submit([0], timeout_s=LONG))
            await until(work.begun.is_set)
            rest = [asyncio.create_task(numbers.submit([item], timeout_s=LONG)) for item in range(1, 7)]
            await until(lambda: len(prepared) == 7 and len(numbers._computing.line) == 6)
            work.go.set()
            assert await first == [0]
            assert [await task for task in rest] == [[2 * item] for item in range(1, 7)]

    run(main())
    assert [len(batch) for batch in work.batches] == [1, 4, 2]


def test_batches_beside_each_other_share_what_waits() -> None:
    begun, go = threading.Semaphore(0), threading.Event()
    batches: list[list[int]] = []

    def compute(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        begun.release()
        assert go.wait(LONG)
        return list(items)

    async def main() -> None:
        with batcher(compute, batch_size=8, batches=2) as numbers:
            first = [asyncio.create_task(numbers.submit([item], timeout_s=LONG)) for item in range(2)]
            for _ in range(2):
                assert await asyncio.to_thread(begun.acquire, timeout=LONG)
            assert [len(batch) for batch in batches] == [1, 1]
            rest = asyncio.create_task(numbers.submit(range(2, 10), timeout_s=LONG))
            await until(lambda: len(numbers._computing.line) == 8)
            go.set()
            assert await asyncio.gather(*first) == [[0], [1]]
            assert await rest == [*range(2, 10)]

    run(main())
    assert sum(len(batch) for batch in batches[2:]) == 8
    assert len(batches[2]) in (4, 8)  # both threads are free, or the first to be


def test_a_slow_item_holds_back_neither_those_before_nor_those_after_it() -> None:
    free = threading.Event()

    def prepare(item: int) -> int:
        assert item != 1 or free.wait(LONG)
        return item

    async def main() -> None:
        with batcher(Doubling().compute, prepare=prepare, prepare_timeout_s=LONG / 10) as numbers:
            tasks = [asyncio.create_task(numbers.submit([item], timeout_s=LONG)) for item in range(12)]
            slow = tasks.pop(1)
            assert await asyncio.gather(*tasks) == [[2 * item] for item in (0, *range(2, 12))]
            free.set()
            assert await slow == [2]

    run(main())


def test_a_full_queue_refuses_at_once_all_or_nothing() -> None:
    work = Doubling(held=True)

    async def main() -> None:
        with batcher(work.compute, capacity=3) as numbers:
            task = asyncio.create_task(numbers.submit([1, 2], timeout_s=LONG))
            await until(work.begun.is_set)
            with pytest.raises(QueueFull) as refused:
                await numbers.submit([3, 4], timeout_s=LONG)
            assert 1 <= refused.value.retry_after_s <= 60
            assert numbers.inside == 2
            another = asyncio.create_task(numbers.submit([5], timeout_s=LONG))
            await until(lambda: numbers.inside == 3)
            with pytest.raises(QueueFull):
                numbers.require_room(1)
            work.go.set()
            assert await task == [2, 4]
            assert await another == [10]
            assert await numbers.submit([6, 7, 8], timeout_s=LONG) == [12, 14, 16]

    run(main())


def test_a_late_request_is_told_so_and_not_computed() -> None:
    work = Doubling(held=True)

    async def main() -> None:
        with batcher(work.compute, batch_size=1) as numbers:
            first = asyncio.create_task(numbers.submit([1], timeout_s=LONG))
            await until(work.begun.is_set)
            with pytest.raises(TooLate):
                await numbers.submit([2, 3], timeout_s=0.01)
            assert numbers.inside == 3
            work.go.set()
            assert await first == [2]
            await until(lambda: numbers.inside == 0)

    run(main())
    assert work.batches == [[1]]


def test_a_caller_that_goes_away_leaves_its_places() -> None:
    work = Doubling(held=True)

    async def main() -> None:
        with batcher(work.compute, batch_size=1) as numbers:
            first = asyncio.create_task(numbers.submit([1], timeout_s=LONG))
            await until(work.begun.is_set)
            gone = asyncio.create_task(numbers.submit([2], timeout_s=LONG))
            await until(lambda: numbers.inside == 2)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            work.go.set()
            assert await first == [2]
            await until(lambda: numbers.inside == 0)

    run(main())
    assert work.batches == [[1]]


def test_an_item_that_cannot_be_prepared_costs_only_itself() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("two is no number")
        return item

    async def main() -> None:
        with batcher(Doubling().compute, prepare=prepare) as numbers:
            one, two, three = await numbers.submit([1, 2, 3], timeout_s=LONG)
            assert (one, three) == (2, 6)
            assert isinstance(two, ValueError)
            assert str(two) == "two is no number"

    run(main())


def test_a_batch_that_fails_is_followed_by_one_that_does_not() -> None:
    def compute(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise RuntimeError("broken")
        return list(items)

    async def main() -> None:
        with batcher(compute) as numbers:
            assert [type(result) for result in await numbers.submit([0, 0], timeout_s=LONG)] == [RuntimeError] * 2
            assert await numbers.submit([1], timeout_s=LONG) == [1]

    run(main())


def test_an_item_that_takes_too_long_is_answered_and_keeps_its_place_until_its_thread_is_free() -> None:
    free, work = threading.Event(), Doubling()

    def prepare(item: int) -> int:
        assert item != 1 or free.wait(LONG)
        return item

    async def main() -> None:
        with batcher(work.compute, prepare=prepare, prepare_timeout_s=0.05) as numbers:
            slow, quick = await numbers.submit([1, 2], timeout_s=LONG)
            assert isinstance(slow, TooSlow)
            assert quick == 4
            assert numbers.inside == 1
            free.set()
            await until(lambda: numbers.inside == 0)

    run(main())
    assert work.batches == [[2]]


def test_the_end_drains_and_takes_no_more() -> None:
    work = Doubling(held=True)

    async def main() -> None:
        with batcher(work.compute, batch_size=2) as numbers:
            tasks = [asyncio.create_task(numbers.submit([item], timeout_s=LONG)) for item in range(5)]
            await until(work.begun.is_set)
            assert not await numbers.close(0.01)
            closing = asyncio.create_task(numbers.close(LONG))
            await asyncio.sleep(0)
            with pytest.raises(Closed):
                await numbers.submit([9], timeout_s=LONG)
            work.go.set()
            assert await closing
            assert [await task for task in tasks] == [[2 * item] for item in range(5)]

    run(main())


def test_batches_are_reported_and_make_the_estimate_of_the_wait() -> None:
    reported: list[int] = []

    async def main() -> None:
        with batcher(Doubling().compute, on_batch=lambda count, seconds: reported.append(count)) as numbers:
            await numbers.submit([1, 2, 3], timeout_s=LONG)
            numbers._seconds_per_item, numbers.inside = 0.5, 21
            assert numbers.retry_after_s() == 11
            numbers.inside = 10_000
            assert numbers.retry_after_s() == 60
            numbers.inside = 0

    run(main())
    assert sum(reported) == 3


@pytest.mark.parametrize("batches", [1, 2])
def test_the_estimate_knows_of_batches_beside_each_other(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))  # each batch takes a second

    async def main() -> None:
        with batcher(Doubling().compute, batches=batches) as numbers:
            for _ in range(100):
                await numbers.submit([1], timeout_s=LONG)
            assert numbers._seconds_per_item == pytest.approx(1 / batches, rel=0.01)

    run(main())

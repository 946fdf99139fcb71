"""A contender's process: first call, turns, and what becomes of one that fails."""

from __future__ import annotations

import os
import time
from functools import partial

import numpy as np
import pytest
import torch

from vitrail.bench.processes import Call, Unmeasurable, Worker, end_all


def doubling(number: float) -> Call:
    return lambda: torch.full((2,), 2 * number, dtype=torch.bfloat16)


def sleeping() -> Call:
    return lambda: time.sleep(600)


def failing() -> Call:
    raise RuntimeError("no such\nkernel")


def failing_later() -> Call:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("the second call")

    return call


def dying() -> Call:
    os._exit(1)


def test_a_worker_gives_its_first_output_and_the_seconds_of_turns() -> None:
    worker = Worker(partial(doubling, 3.0))
    worker.built()
    first = worker.first()
    assert first.seconds > 0
    np.testing.assert_array_equal(first.output, np.full(2, 6.0, dtype=np.float32))
    assert worker.take(3) > 0
    worker.end()


@pytest.mark.parametrize(
    ("build", "says"), [(failing, "^no such kernel$"), (dying, "its process ended; memory may have run out")]
)
def test_a_contender_that_cannot_be_built_has_a_reason(build: Call, says: str) -> None:
    worker = Worker(build)  # type: ignore[arg-type]
    with pytest.raises(Unmeasurable, match=says):
        worker.built()
    worker.end()


def test_a_turn_that_fails_has_a_reason() -> None:
    worker = Worker(failing_later)
    worker.built()
    worker.first()
    with pytest.raises(Unmeasurable, match="the second call"):
        worker.take()
    with pytest.raises(Unmeasurable, match="its process ended"):
        worker.take()
    worker.end()


def test_processes_end_even_in_the_middle_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.bench.processes._PATIENCE_S", 0.2)
    workers = [Worker(sleeping), Worker(partial(doubling, 1.0))]
    for worker in workers:
        worker.built()
    workers[0]._line.send(1)
    end_all(workers)
    assert not any(worker._process.is_alive() for worker in workers)

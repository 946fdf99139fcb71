"""A run ends on time and annealed, whatever the machine does meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.train.pace import Pace


def simulate(pace: Pace, step_s: Callable[[float], float], *, step: int = 0, elapsed: float = 0.0) -> tuple[int, float]:
    """Walks a run on a clock of its own; holds the progress to its promises. Returns the steps and the seconds."""
    before = pace.progress(step)
    while not pace.finished(step):
        elapsed += step_s(elapsed)
        step += 1
        pace.advance(step, elapsed)
        now = pace.progress(step)
        assert before <= now <= 1.0
        before = now
        assert step < 1_000_000
    assert before == pytest.approx(1.0, abs=1e-9)
    return step, elapsed


def test_steps_given_are_walked_evenly() -> None:
    pace = Pace(8)
    assert [pace.progress(step) for step in (0, 2, 8)] == [0.0, 0.25, 1.0]
    assert [pace.finished(step) for step in (0, 7, 8)] == [False, False, True]
    assert not pace.advance(3, 100.0)
    assert simulate(pace, lambda _: 1.0) == (8, 8.0)


@pytest.mark.parametrize("step_s", [0.003, 0.05, 0.6])
def test_a_steady_machine_ends_on_time(step_s: float) -> None:
    steps, elapsed = simulate(Pace(None, seconds=120.0), lambda _: step_s)
    assert elapsed == pytest.approx(120.0, rel=0.05)
    assert steps == pytest.approx(120.0 / step_s, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    factor=st.sampled_from([1 / 3, 0.5, 2.0, 3.0]),
    at=st.floats(0.0, 0.95),
    step_s=st.sampled_from([0.02, 0.05, 0.1]),
    first_s=st.floats(0.0, 2.0),
)
def test_a_machine_that_changes_its_speed_ends_on_time(factor: float, at: float, step_s: float, first_s: float) -> None:
    calls = []

    def clock(elapsed: float) -> float:
        calls.append(1)
        return (first_s if len(calls) == 1 else 0.0) + step_s * (factor if elapsed > at * 60 else 1.0)

    _, elapsed = simulate(Pace(None, seconds=60.0), clock)
    assert elapsed == pytest.approx(60.0, rel=0.05)


def test_an_evaluation_that_takes_long_is_part_of_the_time() -> None:
    calls = []

    def clock(_: float) -> float:
        calls.append(1)
        return 5.0 if len(calls) % 250 == 0 else 0.04

    _, elapsed = simulate(Pace(None, seconds=120.0), clock)
    assert elapsed == pytest.approx(120.0, rel=0.05)


def test_time_for_hardly_a_step_still_ends_annealed() -> None:
    steps, elapsed = simulate(Pace(None, seconds=1.0), lambda _: 3.0)
    assert steps <= 4
    assert elapsed <= 12.0


def test_progress_waits_low_until_the_first_fit() -> None:
    pace = Pace(None, seconds=100.0)
    assert pace.total is None
    assert pace.progress(0) == 0.0
    pace.advance(1, 50.0)
    assert pace.progress(1) == 0.03


@pytest.mark.parametrize("at", [3, 200, 1100])
def test_the_state_comes_back(at: int) -> None:
    pace, elapsed = Pace(None, seconds=60.0), 0.0
    for step in range(1, at + 1):
        elapsed += 0.05
        pace.advance(step, elapsed)
    again = Pace.from_state(json.loads(json.dumps(pace.state())))
    assert (again.steps, again.seconds, again.fits, again.elapsed) == (pace.steps, pace.seconds, pace.fits, pace.elapsed)
    assert again.progress(at) == pace.progress(at)
    assert again.total == pace.total
    _, end = simulate(again, lambda _: 0.15, step=at, elapsed=elapsed)  # resumed on a slower machine
    assert end == pytest.approx(60.0, rel=0.05)
    steps = Pace.from_state(json.loads(json.dumps(Pace(7).state())))
    assert steps == Pace(7)

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
    assert again == pace
    assert again.progress(at) == pace.progress(at)
    assert again.total == pace.total
    _, end = simulate(again, lambda _: 0.15, step=at, elapsed=elapsed)  # resumed on a slower machine
    assert end == pytest.approx(60.0, rel=0.05)
    steps = Pace.from_state(json.loads(json.dumps(Pace(7).state())))
    assert steps == Pace(7)


def walked(pace: Pace, *, steps: int, step_s: float = 0.05) -> tuple[int, float]:
    """So many steps of a fresh run on a steady machine. Returns the step and the seconds it stands at."""
    for step in range(1, steps + 1):
        pace.advance(step, step * step_s)
    return steps, steps * step_s


@pytest.mark.parametrize("at", [1, 2, 5, 20, 300, 700])
def test_a_resumed_run_goes_on_measuring(at: int) -> None:
    """Its fits come where those of a run that was never stopped come, but for the step that warms up."""
    whole, pace = Pace(None, seconds=60.0), Pace(None, seconds=60.0)
    simulate(whole, lambda _: 0.05)
    step, elapsed = walked(pace, steps=at)
    again = Pace.from_state(json.loads(json.dumps(pace.state())))
    assert again.measured == pace.measured
    simulate(again, lambda _: 0.05, step=step, elapsed=elapsed)
    (there, _, _), (here, _, _) = (next(fit for fit in each.fits if fit[0] > at) for each in (whole, again))
    assert there <= here <= there + 1


@pytest.mark.parametrize("at", [2, 5, 61, 300, 700])
def test_the_start_of_a_resumed_run_is_time_and_no_measure(at: int) -> None:
    """Ten seconds until the first step, of compiling: the 35 s and more that are left still hold hundreds of steps."""
    pace = Pace(None, seconds=80.0)
    step, elapsed = walked(pace, steps=at)
    again, calls = Pace.from_state(json.loads(json.dumps(pace.state()))), []

    def clock(_: float) -> float:
        calls.append(1)
        return 10.0 if len(calls) == 1 else 0.05

    end, seconds = simulate(again, clock, step=step, elapsed=elapsed)
    assert seconds == pytest.approx(80.0, rel=0.05)
    assert end - at == pytest.approx((70.0 - elapsed) / 0.05, rel=0.1)


def test_the_first_step_of_a_resumed_run_fits_nothing() -> None:
    """Saved at the step from which the pace is measured, and overdue: there is no step to measure yet."""
    pace = Pace(None, seconds=10.0)
    walked(pace, steps=2, step_s=2.0)
    again = Pace.from_state(pace.state())
    assert not again.advance(3, 6.0)
    assert again.advance(4, 7.0)
    assert again.fits == [(4, 0.03, 7)]


def test_a_checkpoint_of_before_the_measure_was_kept() -> None:
    pace = Pace(None, seconds=60.0)
    step, elapsed = walked(pace, steps=300)
    state = pace.state()
    del state["measured"]
    _, end = simulate(Pace.from_state(state), lambda _: 0.05, step=step, elapsed=elapsed)
    assert end == pytest.approx(60.0, rel=0.05)

"""Interleaved rounds, on a clock that only contenders move."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitrail.bench.rounds import interleave, ratios, rotated, summary, timed


class Clock:
    """A clock whose seconds pass in turns only."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def turn(self, name: str, *seconds: float) -> Callable[[], float]:
        """Return a contender that takes these seconds, one after the other and then the last again."""
        left = list(seconds)

        def take() -> float:
            taken = left.pop(0) if len(left) > 1 else left[0]
            self.now += taken
            self.order.append(name)
            return taken

        return take


def test_each_contender_comes_first_in_turn() -> None:
    clock = Clock()
    values = interleave({name: clock.turn(name, 1.0) for name in "abc"}, least=3, clock=clock)
    assert "".join(clock.order) == "abcbcacab"
    assert values == {name: [1.0] * 3 for name in "abc"}


def test_there_are_least_rounds_even_if_the_time_is_over() -> None:
    clock = Clock()
    assert len(interleave({"a": clock.turn("a", 60.0)}, least=3, until=110.0, clock=clock)["a"]) == 3


def test_a_round_that_would_not_end_in_time_is_not_begun() -> None:
    clock = Clock()
    values = interleave({"a": clock.turn("a", 2.0), "b": clock.turn("b", 1.0)}, least=1, until=111.0, clock=clock)
    assert len(values["a"]) == 3  # 3 seconds each: the fourth would end at 112
    assert clock.now == 109.0


def test_warm_up_rounds_are_dropped() -> None:
    clock, seen = Clock(), []
    values = interleave({"a": clock.turn("a", 9.0, 1.0)}, least=2, warmup=1, clock=clock, on_round=seen.append)
    assert values == {"a": [1.0, 1.0]}
    assert seen == [{"a": 1.0}] * 2


def test_a_ratio_within_a_round_is_free_of_what_slows_the_whole_round() -> None:
    clock = Clock()
    values = interleave(
        {"slow": clock.turn("slow", 2.0, 20.0, 4.0), "fast": clock.turn("fast", 1.0, 10.0, 2.0)}, least=3, clock=clock
    )
    assert ratios(values["slow"], values["fast"]) == [2.0, 2.0, 2.0]


def test_a_summary_is_median_min_and_max() -> None:
    assert summary([1.0, 9.0, 2.00049]) == {"median": 2.0, "min": 1.0, "max": 9.0}


def test_the_order_turns_by_one() -> None:
    assert [rotated("abc", turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]


def test_timed_waits_for_the_device_before_and_after() -> None:
    calls: list[str] = []
    assert timed(lambda: calls.append("call"), times=2, wait=lambda: calls.append("wait")) >= 0
    assert calls == ["wait", "call", "call", "wait"]


def test_series_of_different_lengths_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])

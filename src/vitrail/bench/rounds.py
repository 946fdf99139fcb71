"""Interleaved rounds: contenders take turns in a rotating order, and are compared within a round.

Absolute speed changes with a machine's neighbours and temperature; a ratio within a round holds better.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Summary = dict[str, float]
"""Median, min and max over the rounds."""


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    *,
    least: int,
    until: float = 0.0,
    warmup: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[dict[str, float]], None] = lambda values: None,
) -> dict[str, list[float]]:
    """Call every contender once a round. Return what each one gave, round by round.

    There are `least` rounds at least, and further ones as long as another is expected to end before `until` on the clock;
    `warmup` rounds before them are dropped. `on_round` gets the values of each round.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    start, turn = clock(), 0
    while turn < warmup + least or clock() + (clock() - start) / turn <= until:
        given = {name: contenders[name]() for name in rotated(list(contenders), turn)}
        if turn >= warmup:
            on_round({name: given[name] for name in contenders})
            for name, value in given.items():
                values[name].append(value)
        turn += 1
    return values


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names in the order of this turn."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def timed(call: Callable[[], object], *, times: int = 1, wait: Callable[[], None] = lambda: None) -> float:
    """Return the wall time in seconds of some calls; `wait` returns once the device has done what it was given."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return time.perf_counter() - start


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio within each round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def summary(values: Sequence[float], *, digits: int = 3) -> Summary:
    """Return median, min and max, rounded."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}

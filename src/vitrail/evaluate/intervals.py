"""Confidence intervals of shares and means, and accuracy as a share with its interval. Pure functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class Accuracy:
    """Number of correct predictions out of a number of images."""

    correct: int
    count: int

    @property
    def value(self) -> float:
        """Share of correct predictions; NaN without images."""
        return self.correct / self.count if self.count else math.nan

    @property
    def interval(self) -> Interval:
        """Wilson interval at 95 %."""
        return wilson_interval(self.correct, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        value = self.value if self.count else None
        return {"correct": self.correct, "count": self.count, "accuracy": value, "interval": list(self.interval)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Accuracy:
        """Restore what `to_dict` wrote."""
        return cls(values["correct"], values["count"])


def interval_from(bounds: Sequence[float | None]) -> Interval:
    """Restore an interval from JSON, where a bound that is not finite is None."""
    low, high = bounds
    return -math.inf if low is None else low, math.inf if high is None else high


def number_from(value: float | None) -> float:
    """Restore a number from JSON, where NaN is None."""
    return math.nan if value is None else value


def wilson_interval(correct: int, total: int, *, level: float = 0.95) -> Interval:
    """Compute the interval of a share (Wilson 1927), which is valid near 0 and 1 too. (0, 1) without images."""
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total} is no share; correct must be between 0 and the total")
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level} must be above 0 and below 1")
    if total == 0:
        return 0.0, 1.0
    return share_interval(correct / total, total, level=level)


def share_interval(share: float, cases: float, *, level: float = 0.95) -> Interval:
    """Compute Wilson's interval of a share of `count` independent cases, which need not be a whole number."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    spread = z * z / cases
    middle = (share + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(share * (1 - share) / cases + spread / (4 * cases))
    low = 0.0 if share == 0 else max(0.0, middle - reach)  # exactly the end, not 1e-17 beside it
    return low, 1.0 if share == 1 else min(1.0, middle + reach)


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Compute the interval of a mean by Student's t (1908); infinite bounds for fewer than two values."""
    if len(values) < 2:
        return -math.inf, math.inf
    middle = fmean(values)
    reach = t_quantile(level, len(values) - 1) * stdev(values, middle) / math.sqrt(len(values))
    return middle - reach, middle + reach


@functools.cache
def t_quantile(level: float, freedom: int) -> float:
    """Compute the t that lies within ± with probability `level`, by bisection (Abramowitz and Stegun, 26.7.3)."""

    def within(angle: float) -> float:
        cosine, odd = math.cos(angle), freedom % 2
        term, total = (cosine if odd else 1.0), 0.0
        for power in range(odd, freedom - 1, 2):
            total += term
            term *= cosine * cosine * (power + 1) / (power + 2)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)

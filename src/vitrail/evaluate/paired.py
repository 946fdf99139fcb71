"""Paired comparison of two models on the same images, and the comparison of groups of runs. Pure functions."""

# N M images

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vitrail.evaluate.intervals import Interval, t_quantile

RESAMPLES = 2000
"""Number of bootstrap resamples."""
SIGNIFICANT = 0.05
"""Probability below which a difference is called one."""


@dataclass(frozen=True)
class Paired:
    """Difference of two models on the same images: the second minus the first."""

    images: int
    only_first: int
    """Images that the first one alone gets right."""
    only_second: int
    """Images that the second one alone gets right."""
    difference: float
    """Accuracy of the second minus that of the first."""
    interval: Interval
    """Interval of the difference at 95 %, by the bootstrap over images."""
    p_value: float
    """Probability of a split of the discordant images at least as uneven, were both equally good (exact McNemar test)."""

    @property
    def verdict(self) -> str:
        """Return what the test shows: "better", "worse" or "no difference shown", of the second model."""
        if self.p_value >= SIGNIFICANT:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {**asdict(self), "interval": list(self.interval), "verdict": self.verdict}


def compare_pair(first: Bool[Tensor, " N"], second: Bool[Tensor, " M"], *, seed: int = 0) -> Paired:
    """Compare which of the same images two models get right.

    Raises ValueError for no images, and for two numbers of images.
    """
    if len(first) != len(second):
        raise ValueError(f"the models answered {len(first):,} and {len(second):,} images; compare them on the same ones")
    if not len(first):
        raise ValueError("there are no images to compare on; give a split that has some")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return Paired(
        images=len(first),
        only_first=only_first,
        only_second=only_second,
        difference=(only_second - only_first) / len(first),
        interval=bootstrap_interval(only_first, only_second, len(first), seed=seed),
        p_value=mcnemar(only_first, only_second),
    )


def right_to_text(right: Bool[Tensor, " N"]) -> str:
    """Write which images a model gets right as a text, for JSON: "1" for each of them, "0" for each other one."""
    return "".join("01"[one] for one in right.tolist())


def right_from_text(text: str) -> Bool[Tensor, " N"]:
    """Read what `right_to_text` wrote."""
    return torch.tensor([one == "1" for one in text], dtype=torch.bool)


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test (1947): a fair coin for each discordant image."""
    count, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(least + 1))  # whole numbers: no underflow at a thousand images
    return min(1.0, 2 * tail / 2**count)


def bootstrap_interval(only_first: int, only_second: int, images: int, *, seed: int = 0, level: float = 0.95) -> Interval:
    """Compute the percentile interval of the difference of two accuracies, by resampling images (Efron 1979).

    A resample of images is a multinomial draw of three kinds: right in the first alone, in the second alone, and all others.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([only_first / images, only_second / images], dtype=torch.float64)
    draws = torch.full((RESAMPLES,), float(images), dtype=torch.float64)
    first = torch.binomial(draws, shares[0].expand(RESAMPLES), generator=generator)
    rest = shares[1] / (1 - shares[0]) if only_first < images else torch.zeros((), dtype=torch.float64)
    second = torch.binomial(draws - first, rest.clamp(max=1).expand(RESAMPLES), generator=generator)
    differences = (second - first) / images
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = differences.quantile(tails).tolist()
    return low, high


@dataclass(frozen=True)
class GroupDifference:
    """Difference of the mean scores of two groups of runs, of several seeds each: the second minus the first."""

    difference: float
    interval: Interval
    """Interval at 95 % of Welch's t; infinite where a group has one run."""

    @property
    def verdict(self) -> str:
        """Return what the interval shows: "better", "worse" or "no difference shown", of the second group."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def compare_groups(first: Sequence[float], second: Sequence[float], *, level: float = 0.95) -> GroupDifference:
    """Compare the scores of two groups of seeds (Welch 1947). Raises ValueError for a group without runs."""
    if not first or not second:
        raise ValueError("a group of runs is empty; give at least one run for each")
    difference = fmean(second) - fmean(first)
    if min(len(first), len(second)) < 2:
        return GroupDifference(difference, (-math.inf, math.inf))
    parts = [stdev(scores) ** 2 / len(scores) for scores in (first, second)]
    total = sum(parts)
    if not total:
        return GroupDifference(difference, (difference, difference))
    freedom = total**2 / sum(part**2 / (len(scores) - 1) for part, scores in zip(parts, (first, second), strict=True))
    reach = t_quantile(level, max(1, math.floor(freedom))) * math.sqrt(total)
    return GroupDifference(difference, (difference - reach, difference + reach))

"""Intervals cover: simulations of shares, means and differences whose true value is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from vitrail.evaluate.intervals import Accuracy, interval_from, mean_interval, number_from, wilson_interval
from vitrail.evaluate.paired import bootstrap_interval, compare_groups

WITHIN = {0.9: (0.88, 0.92), 0.95: (0.94, 0.97)}
"""Share of the intervals of a level that may cover the true value."""
LEVELS = pytest.mark.parametrize("level", WITHIN)


def covers(level: float, covered: np.ndarray) -> bool:
    low, high = WITHIN[level]
    return bool(low <= covered.mean() <= high)


@LEVELS
@pytest.mark.parametrize("images", [200, 1000, 10_000])
def test_accuracies_on_test_images(level: float, images: int) -> None:
    """Accuracies from 50 to 99 %, each drawn once: at one accuracy the coverage depends on where whole numbers fall."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.5, 0.99, size=8000)
    drawn = rng.binomial(images, shares).tolist()
    ends = np.array([wilson_interval(correct, images, level=level) for correct in drawn])
    assert covers(level, (ends[:, 0] <= shares) & (shares <= ends[:, 1]))


@LEVELS
def test_shares_of_a_class_with_few_images_on_average(level: float) -> None:
    """Of ten images an interval can't cover as often as it says at each share, but it does over all of them."""
    shares = np.linspace(0.02, 0.98, 97)
    for images in (10, 30):
        ends = np.array([wilson_interval(correct, images, level=level) for correct in range(images + 1)])
        chances = binom.pmf(np.arange(images + 1)[:, None], images, shares)  # (correct, shares)
        covered = ((ends[:, :1] <= shares) & (shares <= ends[:, 1:])) * chances
        assert WITHIN[level][0] <= covered.sum(0).mean() <= WITHIN[level][1]


@LEVELS
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_means_over_seeds(level: float, seeds: int) -> None:
    draws = np.random.default_rng(1).normal(0.8, 0.02, size=(4000, seeds))
    ends = np.array([mean_interval(values, level=level) for values in draws.tolist()])
    assert covers(level, (ends[:, 0] <= 0.8) & (ends[:, 1] >= 0.8))


@LEVELS
@pytest.mark.parametrize("seeds", [3, 5])
def test_differences_of_groups_of_seeds_cover_at_least(level: float, seeds: int) -> None:
    """Degrees of freedom are rounded down, so that the intervals of few seeds are wider than they need be."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(0.8, 0.02, size=(2000, seeds)), rng.normal(0.83, 0.01, size=(2000, seeds))
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    ends = np.array([compare_groups(one, two, level=level).interval for one, two in pairs])
    covered = ((ends[:, 0] <= 0.03) & (ends[:, 1] >= 0.03)).mean()
    assert WITHIN[level][0] <= covered <= 0.99


@LEVELS
def test_differences_on_the_same_images(level: float) -> None:
    rng, covered = np.random.default_rng(3), []
    for seed in range(1500):
        only_first, only_second, _ = rng.multinomial(1000, (0.06, 0.10, 0.84)).tolist()
        low, high = bootstrap_interval(only_first, only_second, 1000, seed=seed, level=level)
        covered.append(low <= 0.04 <= high)
    assert covers(level, np.array(covered))


def test_what_json_lacks_comes_back() -> None:
    assert interval_from([None, 0.5]) == (-math.inf, 0.5)
    assert interval_from([0.25, None]) == (0.25, math.inf)
    assert math.isnan(number_from(None))
    assert number_from(0.5) == 0.5
    assert Accuracy.from_dict(Accuracy(3, 4).to_dict()) == Accuracy(3, 4)

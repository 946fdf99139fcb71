"""Intervals of shares: their coverage in simulation, and what JSON makes of them."""

from __future__ import annotations

import math

import pytest
import torch

from vitrail.evaluate.intervals import Accuracy, interval_from, mean_interval, number_from, wilson_interval


@pytest.mark.parametrize(("level", "least", "most"), [(0.9, 0.88, 0.92), (0.95, 0.94, 0.97)])
def test_wilson_covers(level: float, least: float, most: float) -> None:
    """Mean coverage over shares from 0.05 to 0.95, of 300 images: for a single share it jumps with the whole numbers."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(0.05, 0.95, 19, dtype=torch.float64).repeat(500)
    counts = torch.binomial(torch.full_like(shares, 300.0), shares, generator=generator).long()
    intervals = {count: wilson_interval(count, 300, level=level) for count in set(counts.tolist())}
    hits = [intervals[count][0] <= share <= intervals[count][1] for count, share in zip(counts.tolist(), shares, strict=True)]
    assert least <= sum(map(bool, hits)) / len(hits) <= most


@pytest.mark.parametrize(("level", "least", "most"), [(0.9, 0.88, 0.92), (0.95, 0.94, 0.97)])
def test_the_interval_of_a_mean_covers(level: float, least: float, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(1200, 4, generator=generator, dtype=torch.float64).tolist()
    hits = [low <= 0 <= high for low, high in (mean_interval(values, level=level) for values in draws)]
    assert least <= sum(hits) / len(hits) <= most


def test_what_json_lacks_comes_back() -> None:
    assert interval_from([None, 0.5]) == (-math.inf, 0.5)
    assert interval_from([0.25, None]) == (0.25, math.inf)
    assert math.isnan(number_from(None))
    assert number_from(0.5) == 0.5
    assert Accuracy.from_dict(Accuracy(3, 4).to_dict()) == Accuracy(3, 4)

"""Paired comparison: McNemar's test beside scipy, intervals by simulation, groups of seeds beside Welch's test."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.evaluate.paired import bootstrap_interval, compare_groups, compare_pair, mcnemar, right_from_text, right_to_text


@given(st.integers(0, 60), st.integers(0, 60))
def test_p_value_is_the_binomial_test(first: int, second: int) -> None:
    expected = scipy.stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-9)


def test_many_discordant_images_do_not_underflow() -> None:
    assert 0 <= mcnemar(400, 2600) < 1e-12
    assert mcnemar(5000, 5000) == 1.0


def test_a_difference_is_shown_or_not() -> None:
    first = torch.zeros(1000, dtype=torch.bool)
    first[:800] = True
    better, same = first.clone(), first.clone()
    better[800:840] = True
    same[:3], same[800:804] = False, True
    found = compare_pair(first, better)
    assert (found.only_first, found.only_second, found.difference, found.verdict) == (0, 40, 0.04, "better")
    assert found.interval[0] > 0
    assert compare_pair(better, first).verdict == "worse"
    unclear = compare_pair(first, same)
    assert unclear.verdict == "no difference shown"
    assert unclear.interval[0] < 0 < unclear.interval[1]


def test_intervals_cover_the_true_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    shares, covered = torch.tensor([0.06, 0.10, 0.84]), 0
    for seed in range(300):
        drawn = torch.multinomial(shares, 500, replacement=True, generator=generator).bincount(minlength=3).tolist()
        low, high = bootstrap_interval(drawn[0], drawn[1], 500, seed=seed)
        covered += low <= 0.04 <= high
    assert 0.92 <= covered / 300 <= 0.98


@given(
    st.lists(st.floats(0.5, 1), min_size=2, max_size=6, unique=True),
    st.lists(st.floats(0.5, 1), min_size=2, max_size=6, unique=True),
)
def test_groups_of_seeds_agree_with_welchs_test(first: list[float], second: list[float]) -> None:
    found = compare_groups(first, second)
    theirs = scipy.stats.ttest_ind(second, first, equal_var=False)
    low, high = theirs.confidence_interval(0.95)
    assert found.difference == pytest.approx((low + high) / 2, abs=1e-9)
    assert found.interval[0] <= low + 1e-9  # degrees of freedom are rounded down, which is wider
    assert found.interval[1] >= high - 1e-9


def test_one_seed_shows_nothing() -> None:
    found = compare_groups([0.8], [0.9, 0.91])
    assert found.interval == (-math.inf, math.inf)
    assert found.verdict == "no difference shown"
    assert compare_groups([0.8, 0.8], [0.9, 0.9]).verdict == "better"


def test_bad_input_is_refused() -> None:
    yes = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="on the same ones"):
        compare_pair(yes, yes[:2])
    with pytest.raises(ValueError, match="no images"):
        compare_pair(yes[:0], yes[:0])
    with pytest.raises(ValueError, match="group of runs is empty"):
        compare_groups([], [0.5])


@given(right=st.lists(st.booleans(), max_size=50))
def test_which_images_are_right_goes_through_text(right: list[bool]) -> None:
    values = torch.tensor(right, dtype=torch.bool)
    text = right_to_text(values)
    assert text == "".join("1" if one else "0" for one in right)
    assert torch.equal(right_from_text(text), values)

"""Paired difference of accuracies: value, interval by hand, verdicts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail.evaluate.paired import PairedDifference, paired_difference


def right(count: int, *spans: tuple[int, int]) -> Tensor:
    """A mask with spans of images that are right."""
    mask = torch.zeros(count, dtype=torch.bool)
    for first, end in spans:
        mask[first:end] = True
    return mask


def test_value_and_interval_by_hand() -> None:
    found = paired_difference(right(100, (0, 50)), right(100, (10, 80)))  # 30 gained, 10 lost
    assert found.value == pytest.approx(0.2)
    middle, b, c = 20 / 102, 30.5, 10.5
    reach = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / 102) / 102
    assert found.interval == pytest.approx((middle - reach, middle + reach), abs=1e-6)
    assert found.verdict == "beats"


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_exchanging_the_models_changes_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    before, after = (torch.tensor(values) for values in zip(*pairs, strict=True))
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there.value == pytest.approx(-back.value)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert there.value == pytest.approx(float(after.float().mean() - before.float().mean()), abs=1e-6)
    assert -1 <= there.interval[0] <= there.interval[1] <= 1


def test_verdicts() -> None:
    said = {PairedDifference(0.0, interval).verdict for interval in ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1))}
    assert said == {"beats", "is worse", "no difference shown"}
    assert paired_difference(right(40), right(40)).verdict == "no difference shown", "not one image apart"


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^there are no images to compare"):
        paired_difference(right(0), right(0))

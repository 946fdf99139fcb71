"""The contract's figures, and what breaks it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.deploy.export.contract import FP32, Deviation, Limits, compare_logits, measure_speed


def test_deviation_of_known_logits() -> None:
    reference = torch.tensor([[1.0, 2.0], [3.0, 2.5]])
    logits = torch.tensor([[1.0, 2.5], [2.0, 3.0]])
    apart = compare_logits(logits, reference, multi_label=False)
    assert apart == Deviation(images=2, max_difference=1.0, mean_difference=0.5, agreement=0.5)


def test_labels_agree_where_all_are_on_their_side_of_a_half() -> None:
    reference = torch.tensor([[1.0, -2.0], [1.0, -1.0]])
    assert compare_logits(reference * 2, reference, multi_label=True).agreement == 1.0
    assert compare_logits(torch.tensor([[1.0, 0.1], [1.0, -1.0]]), reference, multi_label=True).agreement == 0.5


def test_logits_that_are_not_finite_are_infinitely_far() -> None:
    reference = torch.tensor([[1.0, 2.0]])
    apart = compare_logits(torch.tensor([[1.0, math.nan]]), reference, multi_label=False)
    assert apart.max_difference == math.inf
    assert "logits differ by inf" in str(apart.broken(FP32))


@given(difference=st.floats(0, 1), agreement=st.floats(0, 1))
def test_a_contract_is_kept_within_its_limits_alone(difference: float, agreement: float) -> None:
    limits = Limits(max_difference=0.5, agreement=0.75)
    apart = Deviation(images=4, max_difference=difference, mean_difference=0.0, agreement=agreement)
    assert (apart.broken(limits) is None) == (difference <= 0.5 and agreement >= 0.75)


def test_a_broken_contract_names_the_limit() -> None:
    far = Deviation(images=4, max_difference=0.02, mean_difference=0.0, agreement=1.0)
    other = Deviation(images=4, max_difference=0.0, mean_difference=0.0, agreement=0.75)
    assert far.broken(FP32) == "logits differ by 2.0e-02, and 1e-03 is allowed"
    assert other.broken(FP32) == "only 75.00 % of the images keep their class, and 100 % must"


def test_both_are_timed_in_turns() -> None:
    calls: list[tuple[str, int]] = []
    images = {batch: torch.zeros(batch, 1) for batch in (1, 3)}
    speeds = measure_speed(
        lambda x: calls.append(("before", len(x))) or x,  # type: ignore[func-returns-value]
        lambda x: calls.append(("after", len(x))) or x,  # type: ignore[func-returns-value]
        images,
        seconds=0.0,
    )
    assert [speed.batch for speed in speeds] == [1, 3]
    assert calls[:6] == [("before", 1), ("after", 1)] * 3
    entry = speeds[1].to_dict()
    assert entry["before_images_per_s"] == pytest.approx(3 / entry["before_s"])

"""Selective prediction by value, and beside a search over all sets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.evaluate.selective import precision_curve, risk_coverage_area, select_at_precision


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.4, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_the_largest_set_is_found(answers: list[tuple[float, bool]], precision: float) -> None:
    confidence, correct = torch.tensor([each[0] for each in answers]), torch.tensor([each[1] for each in answers])
    sizes = [0]
    for least in confidence.unique():
        chosen = correct[confidence >= least]
        if chosen.double().mean() >= precision:
            sizes.append(len(chosen))
    found = select_at_precision(confidence, correct, precision=precision)
    assert found.count == max(sizes)
    assert found.share == pytest.approx(max(sizes) / len(answers))
    if found.count:
        kept = correct[confidence >= found.threshold]
        assert (len(kept), kept.double().mean().item()) == (found.count, pytest.approx(found.precision))
    else:
        assert math.isnan(found.precision)


def test_curve_ends_at_all_answers() -> None:
    values, shares, precisions = precision_curve(torch.tensor([0.9, 0.2, 0.9, 0.5]), torch.tensor([True, False, False, True]))
    assert values.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert shares.tolist() == [0.5, 0.75, 1.0]
    assert precisions.tolist() == pytest.approx([0.5, 2 / 3, 0.5])


def test_area_is_the_mean_error() -> None:
    assert risk_coverage_area(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([True, False, True])) == pytest.approx(
        (0.5 + 1 / 3) / 3
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        select_at_precision(torch.zeros(0), torch.zeros(0, dtype=torch.bool), precision=0.9)
    with pytest.raises(ValueError, match="must be numbers"):
        select_at_precision(torch.tensor([math.nan]), torch.tensor([True]), precision=0.9)
    with pytest.raises(ValueError, match="at most 1"):
        select_at_precision(torch.ones(1), torch.tensor([True]), precision=1.1)

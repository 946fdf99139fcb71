"""Conformal sets: scores by the formula, coverage by simulation, thresholds by rank."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.evaluate.conformal import calibration_scores, class_scores, hashed_uniform, prediction_sets, threshold


def drawn(images: int, *, classes: int = 10, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, classes, generator=generator)
    labels = torch.multinomial((logits / 1.5).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


def test_scores_are_the_formula() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    found = class_scores(logits, penalty=0.1, free_ranks=1, uniform=torch.tensor([0.5]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.5 + 0.15 + 0.1, 0.8 + 0.1 + 0.2]]).double(), atol=1e-6, rtol=0)


@given(coverage=st.sampled_from([0.8, 0.9, 0.95]), seed=st.integers(0, 20))
def test_coverage_is_what_was_asked_for(coverage: float, seed: int) -> None:
    (logits, labels), (new, truth) = drawn(4000, seed=2 * seed), drawn(4000, seed=2 * seed + 1)
    sets = prediction_sets(new, calibration_scores(logits, labels), coverage=coverage)
    covered = sets.gather(1, truth[:, None]).double().mean()
    assert covered == pytest.approx(coverage, abs=0.03)  # four deviations of both samples


def test_a_model_that_is_right_more_often_has_empty_sets_for_its_least_sure_answers() -> None:
    logits, labels = drawn(4000, scale=12)
    scores = calibration_scores(logits, labels)
    sets = prediction_sets(logits, scores, coverage=0.5)
    assert 0.48 < sets.gather(1, labels[:, None]).double().mean() < 0.52
    assert (sets.sum(1) == 0).any()


def test_a_set_does_not_depend_on_its_batch() -> None:
    logits, labels = drawn(50)
    scores = calibration_scores(logits, labels)
    together = prediction_sets(logits, scores, coverage=0.9)
    assert prediction_sets(logits[7:8], scores, coverage=0.9).equal(together[7:8])


def test_hash_is_uniform() -> None:
    values = hashed_uniform(torch.randn(20_000, 10) * 30)
    counts = torch.histc(values.float(), bins=10, min=0, max=1)
    assert ((counts - 2000).abs() < 250).all()


def test_threshold_is_an_order_statistic() -> None:
    scores = tuple(index / 10 for index in range(1, 10))  # n = 9
    assert threshold(scores, 0.9) == 0.9
    assert threshold(scores, 0.5) == 0.5
    assert threshold(scores, 0.95) == math.inf
    for coverage in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            threshold(scores, coverage)


def test_scores_are_thinned_and_none_is_refused() -> None:
    logits, labels = drawn(5000)
    assert len(calibration_scores(logits, labels)) == 1000
    with pytest.raises(ValueError, match="there are none"):
        calibration_scores(logits[:0], labels[:0])

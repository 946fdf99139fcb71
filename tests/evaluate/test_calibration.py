"""Reliability, ECE, Brier score and temperature, beside scikit-learn and by value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.evaluate.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability,
    top_confidence,
)


def drawn(images: int, classes: int, *, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits whose softmax are the probabilities of the labels, then scaled."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * scale, labels


@given(images=st.integers(1, 60), bins=st.integers(1, 20), seed=st.integers(0, 99))
def test_bins_have_equal_mass_and_ascend(images: int, bins: int, seed: int) -> None:
    logits, labels = drawn(images, 3, seed=seed)
    confidence, correct = top_confidence(logits, labels)
    found = reliability(confidence, correct, bins=bins)
    counts = [each.count for each in found]
    assert (sum(counts), len(found)) == (images, min(bins, images))
    assert max(counts) - min(counts) <= 1
    assert [each.confidence for each in found] == sorted(each.confidence for each in found)
    assert sum(each.count * each.accuracy for each in found) == pytest.approx(int(correct.sum()))


@given(seed=st.integers(0, 50))
def test_error_is_that_of_the_definition(seed: int) -> None:
    logits, labels = drawn(40, 4, seed=seed)
    confidence, correct = top_confidence(logits, labels)
    order = np.argsort(confidence.numpy(), kind="stable")
    expected = sum(
        len(part) / 40 * abs(correct.numpy()[part].mean() - confidence.numpy()[part].mean())
        for part in np.array_split(order, 15)
    )
    assert expected_calibration_error(reliability(confidence, correct)) == pytest.approx(expected, abs=1e-9)


@given(seed=st.integers(0, 50), classes=st.integers(2, 5))
def test_brier_score_is_scikit_learns(seed: int, classes: int) -> None:
    logits, labels = drawn(30, classes, seed=seed)
    probabilities = logits.double().softmax(1)
    theirs = sklearn.metrics.brier_score_loss(
        labels.numpy(), probabilities.numpy(), labels=list(range(classes)), scale_by_half=False
    )
    assert brier_score(probabilities, labels) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_temperature_is_what_the_logits_were_scaled_by(scale: float) -> None:
    logits, labels = drawn(20_000, 5, scale=scale)
    found = fit_temperature(logits, labels)
    assert found == 1.0 if scale == 1.0 and found == 1.0 else math.isclose(found, scale, rel_tol=0.04)


@given(seed=st.integers(0, 30), scale=st.floats(0.3, 5))
def test_calibration_is_never_worse_on_the_images_of_the_fit(seed: int, scale: float) -> None:
    logits, labels = drawn(200, 4, seed=seed, scale=scale)
    errors = [
        expected_calibration_error(reliability(*top_confidence(logits, labels, temperature=each)))
        for each in (1.0, fit_temperature(logits, labels))
    ]
    assert errors[1] <= errors[0]


def test_all_right_or_all_wrong_has_a_temperature_within_bounds() -> None:
    logits, labels = torch.eye(4).repeat(30, 1) * 3, torch.arange(4).repeat(30)
    assert 0.05 <= fit_temperature(logits, labels) < 1
    assert 1 < fit_temperature(logits, (labels + 1) % 4) <= 20.1


def test_a_few_images_have_no_temperature() -> None:
    logits, labels = drawn(99, 3, scale=5.0)
    assert fit_temperature(logits, labels) == 1.0
    logits, labels = drawn(100, 3, scale=5.0)
    assert fit_temperature(logits, labels) > 2


def test_bad_input_is_refused() -> None:
    nan = torch.tensor([[math.nan, 0.0]])
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(nan, torch.tensor([0]))
    with pytest.raises(ValueError, match="the validation split is empty"):
        fit_temperature(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        reliability(torch.tensor([math.nan]), torch.tensor([True]))
    with pytest.raises(ValueError, match="no predictions"):
        reliability(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    with pytest.raises(ValueError, match="0 bins"):
        reliability(torch.ones(1), torch.tensor([True]), bins=0)


def test_a_calibrated_model_keeps_its_probabilities_and_an_over_confident_one_does_not() -> None:
    """Labels drawn from the probabilities themselves: of 40 samples, few give a temperature; twice the logits give 2 always."""
    kept, temperatures = 0, []
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(1000, 10, generator=g)
        labels = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
        kept += fit_temperature(logits, labels) == 1.0
        temperatures.append(fit_temperature(2 * logits, labels))
    assert kept >= 35
    assert all(1.7 < temperature < 2.4 for temperature in temperatures)

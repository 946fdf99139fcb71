"""F1 of classes and macro F1 beside scikit-learn's and torchmetrics', degenerate cases, and the bootstrap's coverage."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support
from torch import Tensor

from vitrail.evaluate.f1 import class_f1, macro_f1, macro_f1_interval
from vitrail.evaluate.metrics import confusion_matrix


def drawn(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labels and predictions of which about half are right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    other = torch.randint(classes, (images,), generator=generator)
    return labels, torch.where(torch.rand(images, generator=generator) < 0.5, labels, other)


@given(images=st.integers(1, 60), classes=st.integers(1, 8), seed=st.integers(0, 1000))
def test_f1_is_scikit_learns_and_torchmetrics(images: int, classes: int, seed: int) -> None:
    labels, predicted = drawn(images, classes, seed)  # of few images, some class is neither a label nor a prediction
    matrix = confusion_matrix(predicted, labels, num_classes=classes)
    found = class_f1(matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predicted, labels=range(classes), zero_division=np.nan
        )
        assert macro_f1(matrix) == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
    np.testing.assert_allclose(found.precision, precision, atol=1e-6)
    np.testing.assert_allclose(found.recall, recall, atol=1e-6)
    present = ((matrix.sum(0) + matrix.sum(1)) > 0).numpy()
    np.testing.assert_allclose(found.f1.numpy()[present], np.asarray(f1)[present], atol=1e-6)
    assert np.isnan(found.f1.numpy()[~present]).all()
    if classes > 1:
        theirs = reference.multiclass_f1_score(predicted, labels, num_classes=classes, average="macro")
        assert macro_f1(matrix) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize(
    ("matrix", "value"),
    [
        ([[5]], 1.0),
        ([[3, 0], [0, 0]], 1.0),  # a class that is absent does not count
        ([[0, 3], [0, 0]], 0.0),  # but one that is predicted does
        ([[0, 2], [2, 0]], 0.0),
    ],
)
def test_degenerate_matrices(matrix: list[list[int]], value: float) -> None:
    assert macro_f1(torch.tensor(matrix)) == value
    low, high = macro_f1_interval(torch.tensor(matrix))
    assert low <= value <= high


def test_no_images_have_no_f1_and_the_whole_interval() -> None:
    nothing = torch.zeros(3, 3, dtype=torch.long)
    assert math.isnan(macro_f1(nothing))
    assert macro_f1_interval(nothing) == (0.0, 1.0)


def test_levels_are_checked_and_wider_ones_are_wider() -> None:
    labels, predicted = drawn(300, 4, 0)
    matrix = confusion_matrix(predicted, labels, num_classes=4)
    narrow, wide = (macro_f1_interval(matrix, level=level) for level in (0.8, 0.95))
    assert wide[0] < narrow[0] < macro_f1(matrix) < narrow[1] < wide[1]
    with pytest.raises(ValueError, match="above 0 and below 1"):
        macro_f1_interval(matrix, level=1.0)


def test_memory_in_parts_changes_nothing_but_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predicted = drawn(2000, 5, 1)
    matrix = confusion_matrix(predicted, labels, num_classes=5)
    whole = macro_f1_interval(matrix)
    monkeypatch.setattr("vitrail.evaluate.f1.CELLS_AT_ONCE", 3000)
    assert macro_f1_interval(matrix) == pytest.approx(whole, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize(("level", "least", "most"), [(0.9, 0.88, 0.92), (0.95, 0.94, 0.97)])
def test_the_interval_covers(level: float, least: float, most: float) -> None:
    """Coverage in simulation: a known confusion of five classes of unequal size, 1,500 images."""
    generator = np.random.default_rng(0)
    recall = np.array([0.9, 0.8, 0.7, 0.85, 0.6])
    shares = np.full((5, 5), 0.0) + (1 - recall)[:, None] / 4
    np.fill_diagonal(shares, recall)
    shares *= np.array([0.3, 0.25, 0.2, 0.15, 0.1])[:, None]
    truth = macro_f1(torch.from_numpy((shares * 1e9).round().astype(np.int64)))
    hits, draws = 0, 1500
    for seed in range(draws):
        matrix = torch.from_numpy(generator.multinomial(1500, shares.ravel()).reshape(5, 5))
        low, high = macro_f1_interval(matrix, level=level, seed=seed)
        hits += low <= truth <= high
    assert least <= hits / draws <= most

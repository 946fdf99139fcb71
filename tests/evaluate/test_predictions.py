"""Predictions image by image: ranks, probabilities, the file, and whether they belong to a split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split
from vitrail.evaluate.metrics import judge
from vitrail.evaluate.outliers import energy
from vitrail.evaluate.predictions import (
    PREDICTIONS,
    ClassPredictions,
    WorstLabels,
    find_worst_labels,
    rank_predictions,
    read_predictions,
)


class Listed(Split):
    """A split without pixels."""

    def __init__(self, labels: Tensor, multi_hot: Tensor | None = None) -> None:
        super().__init__(labels=labels, sizes=torch.ones(len(labels), 2).long(), names=[f"{i}" for i in range(len(labels))])
        self.multi_hot = multi_hot

    def read(self, indexes: Tensor, *, boxes: Tensor | None = None) -> tuple[RawBatch, tuple[Skipped, ...]]:
        raise NotImplementedError


def drawn(images: int, classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator).mul(3).round()  # with ties
    return logits, torch.randint(classes, (images,), generator=generator)


@given(images=st.integers(1, 30), classes=st.integers(1, 9), seed=st.integers(0, 100))
def test_the_predicted_class_is_that_of_the_scores(images: int, classes: int, seed: int) -> None:
    logits, labels = drawn(images, classes, seed=seed)
    judged = judge(logits, labels)
    found = rank_predictions(logits, labels, torch.arange(images), predicted=judged.predicted, temperature=1.5)
    assert found.predicted.equal(judged.predicted)
    assert found.ranked.shape == (images, min(5, classes))
    assert all(len(set(row)) == len(row) for row in found.ranked.tolist())
    assert bool((found.probabilities.diff(dim=1) <= 1e-6).all())
    shares = (logits.double() / 1.5).softmax(1)
    torch.testing.assert_close(found.probabilities.double(), shares.gather(1, found.ranked), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.label_probability.double(), shares[range(images), labels], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.energy.double(), energy(logits), atol=1e-5, rtol=1e-6)
    assert found.correct.equal(judged.predicted == labels)


def test_many_images_are_ranked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(50, 7)
    whole = rank_predictions(logits, labels, torch.arange(50), predicted=logits.argmax(1))
    monkeypatch.setattr("vitrail.evaluate.predictions._ROWS", 8)
    parts = rank_predictions(logits, labels, torch.arange(50), predicted=logits.argmax(1))
    assert all(getattr(whole, name).equal(value) for name, value in vars(parts).items())


def test_a_file_gives_them_back(tmp_path: Path) -> None:
    logits, labels = drawn(20, 4)
    saved = rank_predictions(logits, labels, torch.arange(20), predicted=logits.argmax(1))
    assert saved.save(tmp_path) == tmp_path / PREDICTIONS
    restored = read_predictions(tmp_path, ClassPredictions)
    assert restored is not None
    for name, value in vars(saved).items():
        assert getattr(restored, name).equal(value), name
        assert getattr(restored, name).dtype == value.dtype, name
    assert read_predictions(tmp_path, WorstLabels) is None, "of another kind"
    assert read_predictions(tmp_path / "elsewhere", ClassPredictions) is None


@pytest.mark.parametrize("damage", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / PREDICTIONS).write_bytes(damage)
    with pytest.raises(ValueError, match=r"predictions\.npz can't be read .*`vitrail evaluate") as error:
        read_predictions(tmp_path, ClassPredictions)
    assert "\n" not in str(error.value)


def test_answers_know_their_split() -> None:
    logits, labels = drawn(10, 4)
    found = rank_predictions(logits[2:], labels[2:], torch.arange(2, 10), predicted=logits[2:].argmax(1))
    assert found.are_of(Listed(labels))
    assert not found.are_of(Listed((labels + 1) % 4)), "other labels"
    assert not found.are_of(Listed(labels[:9])), "fewer images"


def test_the_worst_label_has_the_greatest_loss() -> None:
    logits = torch.tensor([[4.0, -1.0, 0.5], [-3.0, 2.0, -0.5], [9.0, -9.0, -9.0]])
    targets = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    found = find_worst_labels(logits, targets, torch.arange(3))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    assert found.worst.equal(loss.argmax(1))
    assert found.positive.tolist() == [True, False, targets[2, found.worst[2]].item()]
    torch.testing.assert_close(found.error, 1 - torch.exp(-loss.max(1).values), atol=1e-6, rtol=0)
    assert found.explained.equal(found.worst)
    split = Listed(torch.full((3,), -1), targets)
    assert found.are_of(split)
    assert not dataclasses.replace(found, positive=~found.positive).are_of(split)
    assert not found.are_of(Listed(torch.zeros(3).long())), "one class an image"

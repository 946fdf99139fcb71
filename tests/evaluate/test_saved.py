"""Scores as files: what is read is what was written, for every kind of scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from vitrail.evaluate import (
    EmbeddingScores,
    Evaluation,
    MultiLabelEvaluation,
    read_evaluation,
    save_evaluation,
    score,
    score_labels,
)
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.predictions import find_worst_labels, rank_predictions
from vitrail.evaluate.trust import calibrate, measure_trust
from vitrail.evaluate.uniformity import Uniformity

CLASSES = ("a", "b, c", "nobody")


def evaluation(*, images: int = 40, kept: bool = True, calibrated: bool = True) -> Evaluation:
    """Scores of random logits; no image has the last class."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(images, 3, generator=generator), torch.randint(2, (images,), generator=generator)
    scores = score(logits, labels, classes=CLASSES)
    trust = measure_trust(logits, labels, calibrate(logits, labels) if calibrated else None)
    predictions = rank_predictions(logits, labels, torch.arange(images), predicted=logits.argmax(1)) if kept else None
    return dataclasses.replace(scores, trust=trust, predictions=predictions)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("calibrated", [True, False])
def test_scores_of_classes_come_back(tmp_path: Path, kept: bool, calibrated: bool) -> None:
    scores = evaluation(kept=kept, calibrated=calibrated)
    files = save_evaluation(scores, tmp_path, data="photos", split="test")
    expected = ["confusion.csv", "confusion.png", "evaluation.json"] + ["predictions.npz"] * kept
    assert sorted(path.name for path in files) == expected
    found = read_evaluation(tmp_path)
    assert found is not None
    assert (found.data, found.split, found.stopped) == ("photos", "test", None)
    assert isinstance(found.scores, Evaluation)
    assert found.scores.to_dict() == scores.to_dict()
    assert found.scores.confusion.equal(scores.confusion)
    assert found.scores.classes == CLASSES
    assert (found.scores.predictions is not None) == kept


def test_predictions_of_other_scores_are_not_taken_for_these(tmp_path: Path) -> None:
    save_evaluation(evaluation(images=40), tmp_path, data="photos", split="test")
    predictions = (tmp_path / "predictions.npz").read_bytes()
    other = evaluation(images=30)
    save_evaluation(other, tmp_path, data="photos", split="test")
    (tmp_path / "predictions.npz").write_bytes(predictions)
    found = read_evaluation(tmp_path)
    assert found is not None
    assert isinstance(found.scores, Evaluation)
    assert found.scores.predictions is None
    assert found.scores.confusion.equal(other.confusion)


def test_scores_without_predictions_leave_none_behind(tmp_path: Path) -> None:
    save_evaluation(evaluation(), tmp_path, data="photos", split="test")
    save_evaluation(evaluation(kept=False), tmp_path, data="photos", split="test")
    assert not (tmp_path / "predictions.npz").exists()


def test_scores_of_labels_come_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(20, 3, generator=generator), torch.rand(20, 3, generator=generator) > 0.5
    targets[:, 2] = False  # a label that no image has
    scores = score_labels(logits, targets, classes=CLASSES)
    scores = dataclasses.replace(scores, predictions=find_worst_labels(logits, targets, torch.arange(20)))
    save_evaluation(scores, tmp_path, data="beach", split="val")
    found = read_evaluation(tmp_path)
    assert found is not None
    assert isinstance(found.scores, MultiLabelEvaluation)
    assert found.scores.to_dict() == scores.to_dict()
    assert found.scores.predictions is not None
    assert scores.predictions is not None
    assert found.scores.predictions.worst.equal(scores.predictions.worst)


@pytest.mark.parametrize("knn", [None, Accuracy(3, 4)])
@pytest.mark.parametrize("spread", [None, Uniformity(-2.0, (-2.5, -1.5))])
def test_scores_of_an_embedding_come_back(tmp_path: Path, knn: Accuracy | None, spread: Uniformity | None) -> None:
    scores = EmbeddingScores(4, knn, 2.5, (1.0, 4.0), width=8, uniformity=spread)
    save_evaluation(scores, tmp_path, data="album", split="val", stopped={"cause": "low rank"})
    found = read_evaluation(tmp_path)
    assert found is not None
    assert found.scores == scores
    assert found.stopped == {"cause": "low rank"}


def test_no_scores_are_none_and_damaged_ones_an_error(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    for text in ("", "{}", "[]", '{"top1": 1}', json.dumps({"data": "d", "split": "test", "mean_ap": 1})):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(ValueError, match=r"evaluation\.json can't be read .*`vitrail evaluate") as error:
            read_evaluation(tmp_path)
        assert "\n" not in str(error.value)

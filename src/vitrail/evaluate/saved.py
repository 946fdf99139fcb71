"""Scores as files: evaluation.json, with the confusion matrix and the predictions image by image beside it."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from vitrail.evaluate.confusion import TABLE, save_confusion
from vitrail.evaluate.embedding import EmbeddingScores
from vitrail.evaluate.metrics import Evaluation, Scores, confusion_matrix
from vitrail.evaluate.multilabel import MultiLabelEvaluation
from vitrail.evaluate.predictions import PREDICTIONS, ClassPredictions, WorstLabels, read_predictions
from vitrail.weights.run_folder import write_atomically

SCORES = "evaluation.json"


@dataclass(frozen=True)
class SavedEvaluation:
    """Scores of a folder."""

    data: str
    """Name of the data set."""
    split: str
    scores: Scores
    stopped: Mapping[str, Any] | None
    """Why and where the run ended before its time; None for a run that went to its end."""


def save_evaluation(
    scores: Scores, folder: Path, *, data: str, split: str, stopped: Mapping[str, Any] | None = None
) -> tuple[Path, ...]:
    """Write evaluation.json, predictions.npz and, with one class per image, confusion.png and confusion.csv.

    Return their paths. A model without classes has no predictions. `stopped` says why and where a run ended before its time;
    without it, the entry of a file that is replaced stays.
    """
    path = folder / SCORES
    if stopped is None and path.exists():
        with contextlib.suppress(ValueError):
            stopped = json.loads(path.read_text(encoding="utf-8")).get("stopped")
    numbers = {"data": data, "split": split, **scores.to_dict(), **({} if stopped is None else {"stopped": dict(stopped)})}
    others: tuple[Path, ...] = save_confusion(scores, folder) if isinstance(scores, Evaluation) else ()
    predictions = scores.predictions if isinstance(scores, Evaluation | MultiLabelEvaluation) else None
    (folder / PREDICTIONS).unlink(missing_ok=True)  # those of other images, should the next lines fail
    if predictions is not None:
        others = (*others, predictions.save(folder))
    with write_atomically(path) as draft:
        draft.write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return (path, *others)


def read_evaluation(folder: Path) -> SavedEvaluation | None:
    """Read the scores that `save_evaluation` wrote; None without evaluation.json. Raises ValueError for damaged files."""
    path = folder / SCORES
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        restore = next(restore for key, restore in KINDS.items() if key in values)
        return SavedEvaluation(str(values["data"]), str(values["split"]), restore(values, folder), values.get("stopped"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} can't be read ({reason}); `vitrail evaluate {folder}` makes it anew") from error


def restore_evaluation(values: Mapping[str, Any], folder: Path) -> Evaluation:
    """Restore scores of images with one class each; the matrix is that of the predictions, else that of confusion.csv."""
    predictions = read_predictions(folder, ClassPredictions)
    if predictions is not None and (len(predictions), int(predictions.correct.sum())) == hits(values):
        matrix = confusion_matrix(predictions.predicted, predictions.labels, num_classes=len(values["per_class"]))
    else:
        predictions, matrix = None, read_confusion(folder)
    return Evaluation.from_dict(values, confusion=matrix, predictions=predictions)


def restore_labels(values: Mapping[str, Any], folder: Path) -> MultiLabelEvaluation:
    """Restore scores of images with any number of labels."""
    predictions = read_predictions(folder, WorstLabels)
    if predictions is not None and len(predictions) != values["count"]:
        predictions = None
    return MultiLabelEvaluation.from_dict(values, predictions=predictions)


def hits(values: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of images and of correct ones: predictions with others are those of an earlier evaluation."""
    return values["count"], round(values["top1"] * values["count"])


def read_confusion(folder: Path) -> Int64[Tensor, "K K"]:
    """Read the counts of confusion.csv."""
    with (folder / TABLE).open(newline="", encoding="utf-8") as file:
        rows = [row[1:] for row in csv.reader(file)][1:]
    return torch.tensor([[int(cell) for cell in row] for row in rows])


KINDS: dict[str, Callable[[Mapping[str, Any], Path], Scores]] = {
    "top1": restore_evaluation,
    "mean_ap": restore_labels,
    "effective_rank": lambda values, folder: EmbeddingScores.from_dict(values),
}
"""A key that only this kind of scores has in evaluation.json, and how they are restored."""

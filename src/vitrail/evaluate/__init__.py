"""Evaluation of a model on data: scores with confidence intervals."""

from vitrail.evaluate.confusion import save_confusion
from vitrail.evaluate.embedding import EmbeddingScores, evaluate_embedding
from vitrail.evaluate.evaluate import evaluate, evaluate_labels
from vitrail.evaluate.intervals import wilson_interval
from vitrail.evaluate.metrics import Evaluation, Scores, confusion_matrix, score, topk_correct
from vitrail.evaluate.multilabel import MultiLabelEvaluation, score_labels
from vitrail.evaluate.run import RunEvaluation, evaluate_run
from vitrail.evaluate.saved import SavedEvaluation, read_evaluation, save_evaluation

__all__ = [
    "EmbeddingScores",
    "Evaluation",
    "MultiLabelEvaluation",
    "RunEvaluation",
    "SavedEvaluation",
    "Scores",
    "confusion_matrix",
    "evaluate",
    "evaluate_embedding",
    "evaluate_labels",
    "evaluate_run",
    "read_evaluation",
    "save_confusion",
    "save_evaluation",
    "score",
    "score_labels",
    "topk_correct",
    "wilson_interval",
]

"""A model and data give numbers, each with its interval."""

from vitrail.evaluate.confusion import save_confusion
from vitrail.evaluate.evaluate import evaluate, save_evaluation
from vitrail.evaluate.metrics import Evaluation, confusion_matrix, score, topk_correct, wilson_interval

__all__ = [
    "Evaluation",
    "confusion_matrix",
    "evaluate",
    "save_confusion",
    "save_evaluation",
    "score",
    "topk_correct",
    "wilson_interval",
]

"""Which images a report shows."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.evaluate.metrics import confusion_matrix
from vitrail.evaluate.predictions import ClassPredictions, WorstLabels
from vitrail.report.choice import ERRORS, OF_A_PAIR, UNSURE, choose_examples, choose_labels, confused_pairs


def predictions(labels: list[int], predicted: list[int], confidence: list[float]) -> ClassPredictions:
    sure = torch.tensor(confidence)
    ranked = torch.tensor(predicted)[:, None]
    return ClassPredictions(
        torch.arange(len(labels)), torch.tensor(labels), ranked, sure[:, None], sure, torch.zeros(len(labels))
    )


def matrix_of(found: ClassPredictions, classes: int) -> Tensor:
    return confusion_matrix(found.predicted, found.labels, num_classes=classes)


def test_errors_are_the_most_confident_and_doubts_the_least() -> None:
    found = predictions([0, 0, 0, 1, 1], [0, 1, 1, 0, 1], [0.9, 0.8, 0.95, 0.4, 0.3])
    choice = choose_examples(found, matrix_of(found, 2))
    assert choice.errors == (2, 1, 3)
    assert choice.unsure == (4, 0), "what is shown as an error is not shown again"
    assert choice.explained == (2, 1, 3, 4, 0)
    assert choice.pairs == ((2, 1), (3,))
    assert sorted(choice.rows) == [0, 1, 2, 3, 4]


def test_no_more_are_shown_than_there_is_room_for() -> None:
    found = predictions([0] * 60, [1] * 60, [k / 60 for k in range(60)])
    choice = choose_examples(found, matrix_of(found, 2))
    assert choice.errors == tuple(range(59, 59 - ERRORS, -1))
    assert choice.unsure == tuple(range(UNSURE))
    assert choice.pairs == (tuple(range(59, 59 - OF_A_PAIR, -1)),)


def test_nothing_wrong_leaves_the_doubts() -> None:
    found = predictions([0, 1], [0, 1], [0.9, 0.6])
    choice = choose_examples(found, matrix_of(found, 2))
    assert (choice.errors, choice.unsure, choice.pairs) == ((), (1, 0), ())


def test_pairs_come_by_count_then_by_share() -> None:
    pairs = confused_pairs(torch.tensor([[90, 5, 5], [5, 5, 0], [0, 1, 99]]))
    assert [(pair.true, pair.predicted, pair.count, pair.total) for pair in pairs] == [
        (1, 0, 5, 10),
        (0, 1, 5, 100),
        (0, 2, 5, 100),
        (2, 1, 1, 100),
    ]
    assert pairs[0].share == 0.5
    assert pairs[0].interval[0] < 0.5 < pairs[0].interval[1]
    assert len(confused_pairs(torch.tensor([[90, 5, 5], [5, 5, 0], [0, 1, 99]]), most=2)) == 2
    assert len(confused_pairs(torch.tensor([[90, 5, 5], [5, 5, 0], [0, 1, 99]]), least=2)) == 3


def test_labels_that_are_right_are_no_errors() -> None:
    found = WorstLabels(
        torch.arange(3), torch.tensor([1, 0, 2]), torch.tensor([0.8, 0.6, 0.2]), torch.tensor([False, True, True])
    )
    assert choose_labels(found).errors == (0, 2), "both are 0.8 away, and stay in their order"
    assert choose_labels(found).unsure == ()

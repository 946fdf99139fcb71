"""The word at the end of pre-training: scores, verdicts in plain sentences, and JSON that is read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.train.before_after import (
    FrozenScores,
    PretrainingComparison,
    fit_frozen,
    read_start,
    write_comparison,
    write_start,
)


def scores(right: dict[str, Tensor] | None = None, *, rank: float = 9.0) -> FrozenScores:
    return FrozenScores(200, right or {}, rank, (rank - 1, rank + 1), -1.25, (-1.5, -1.0))


def first(count: int) -> Tensor:
    return torch.arange(200) < count


def compare(before: int, after: int, *, knn: tuple[int, int] | None = None) -> PretrainingComparison:
    low, high = knn or (before, after)
    start, end = ({"probe": first(a), "knn": first(b)} for a, b in ((before, low), (after, high)))
    return PretrainingComparison(scores(start), scores(end), split="test", start_weights="random weights")


def test_verdicts_are_plain_sentences() -> None:
    assert compare(100, 150).verdict == "pre-training paid: the linear probe beats that of random weights"
    assert compare(150, 100).verdict == "pre-training did harm: the linear probe is worse than that of random weights"
    assert compare(100, 101).verdict == (
        "pre-training has not paid yet: no difference shown to the linear probe of random weights"
    )
    assert compare(100, 150, knn=(150, 100)).verdict.endswith("random weights; by k-NN: worse")
    lines = compare(100, 150).lines()
    assert lines[0].startswith("the linear probe: 50.0% (43.1% to 56.9%) to 75.0% (68.6% to 80.5%); +25.0 points (+")


def test_without_labels_it_says_that_labels_are_needed() -> None:
    found = PretrainingComparison(scores(rank=4.0), scores(rank=12.5), split="val", start_weights="runs/pre")
    assert found.differences == {}
    assert found.lines()[:2] == ["effective rank: 4.0 to 12.5", "uniformity: -1.25 to -1.25"]
    assert "can't be told without labels" in found.verdict


def test_json_holds_both_and_is_read_again(tmp_path: Path) -> None:
    assert read_start(tmp_path) is None
    start = compare(100, 150).start
    write_start(tmp_path, start)
    read = read_start(tmp_path)
    assert read is not None
    assert read.to_dict() == start.to_dict()
    assert read.right["probe"].equal(start.right["probe"])
    write_comparison(tmp_path, compare(100, 150))
    found = json.loads((tmp_path / "pretraining.json").read_text())
    assert set(found) == {"split", "start_weights", "start", "end", "differences", "verdict"}
    assert found["end"]["probe"]["correct"] == 150
    assert found["differences"]["probe"]["verdict"] == "better"
    again = read_start(tmp_path)  # of a run that was stopped in the last moment
    assert again is not None
    assert again.to_dict() == start.to_dict()


@pytest.mark.parametrize("apart", [0.0, 4.0])
def test_features_that_tell_classes_apart_are_scored_so(apart: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    train, test = (
        LabelledEmbeddings(torch.randn(120, 5, generator=generator) + apart * torch.eye(5)[labels], labels) for _ in range(2)
    )
    found = fit_frozen(train, test, num_classes=3, device=torch.device("cpu"))
    for way in ("probe", "knn"):
        assert (found.accuracy(way).value > 0.8) == bool(apart)
    assert fit_frozen(None, test, num_classes=0, device=torch.device("cpu")).right == {}

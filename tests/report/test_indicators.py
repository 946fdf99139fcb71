"""Numbers that advice follows from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vitrail.evaluate.robustness import Robustness
from vitrail.report.facts import gather_facts
from vitrail.report.indicators import compute_indicators, late_rise, train_gap


def test_the_gap_is_of_the_last_tenth_and_the_last_evaluation() -> None:
    train = [{"step": step, "accuracy": 0.5 if step < 90 else 0.9} for step in range(0, 101, 10)]
    assert train_gap([*train, {"step": 50, "val_top1": 0.4}, {"step": 100, "val_top1": 0.7}]) == pytest.approx(0.2)
    assert train_gap(train) is None
    assert train_gap([{"step": 1, "val_top1": 0.5}]) is None


def test_a_rise_is_over_the_best_before_the_last_fifth() -> None:
    def scores(*values: float) -> list[dict[str, float]]:
        return [{"step": 10 * (place + 1), "val_top1": value} for place, value in enumerate(values)]

    assert late_rise(scores(0.1, 0.2, 0.3, 0.4, 0.5), "val_top1") == pytest.approx(0.1)
    assert late_rise(scores(0.1, 0.6, 0.3, 0.4, 0.5), "val_top1") == pytest.approx(-0.1), "it was higher before"
    assert late_rise(scores(0.5), "val_top1") is None
    assert late_rise([], "val_top1") is None
    assert late_rise(scores(0.1, 0.2), "val_map") is None


def test_a_run_has_its_numbers(run: Path) -> None:
    (run / "ladder.json").write_text(json.dumps({"probe": {"test": {"correct": 9, "count": 12, "accuracy": 0.75}, "val": {}}}))
    (run / "skipped.txt").write_text("a.jpg\tcut short\nb.jpg\tno image\n")
    facts = gather_facts(run)
    found = compute_indicators(facts)
    assert facts.classified is not None
    assert found.accuracy == facts.classified.top1
    assert set(found.train_counts) == set(facts.info.classes)
    assert set(found.train_counts.values()) == {8}
    assert set(found.test_counts.values()) == {6}
    assert found.over_probe == pytest.approx(found.accuracy - 0.75)
    assert found.skipped == 2
    assert found.outliers is not None
    assert set(found.coverage) == {"90 %", "95 %"}
    assert found.over_confidence is not None
    assert found.corruptions == {}


def test_a_corruption_costs_its_mean_over_the_severities(run: Path, robustness: Robustness) -> None:
    facts = dataclasses.replace(gather_facts(run), robustness=robustness)
    assert compute_indicators(facts).corruptions == {"motion_blur": pytest.approx(0.3)}

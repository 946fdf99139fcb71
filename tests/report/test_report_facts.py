"""RunFacts of a run folder: what is read, what is missing, and what is cut for privacy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitrail.evaluate.robustness import Robustness
from vitrail.report.facts import gather_facts, without_paths
from vitrail.report.sections.training import SCORES
from vitrail.train.curves import PANELS


def test_a_run_is_read(run: Path, photos: Path) -> None:
    facts = gather_facts(run)
    assert facts.name == "run"
    assert facts.data == photos.name, "without its place"
    assert facts.recipe == "from-scratch"
    assert facts.asked["train"]["steps"] == 2
    assert facts.provenance.starts[0].torch
    assert facts.provenance.images == {"train": 16, "val": 12, "test": 12}
    assert facts.provenance.class_counts == (8, 8)
    assert facts.provenance.ended
    assert any("16 training images, 2 classes" in note for note in facts.provenance.notes)
    assert facts.supervised
    assert facts.calibration_images == 12
    assert facts.classified is not None
    assert facts.predictions is not None
    assert len(facts.predictions) == 12
    assert facts.ladder is facts.comparison is facts.robustness is None
    assert not facts.checked
    assert "model-index" in facts.card


@pytest.mark.parametrize("name", ["ladder.json", "pretraining.json", "provenance.json", "call.json"])
def test_a_damaged_companion_costs_its_part_alone(run: Path, name: str) -> None:
    (run / name).write_text("{ cut short")
    facts = gather_facts(run)
    assert facts.ladder is None
    assert facts.comparison is None


def test_scores_of_the_start_are_no_comparison(run: Path) -> None:
    (run / "pretraining.json").write_text(json.dumps({"start": {}}))
    assert gather_facts(run).comparison is None


def test_what_is_no_finished_run_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    cases = {
        tmp_path / "nothing": "does not exist",
        tmp_path: "holds no config.json",
    }
    (run / "evaluation.json").unlink()
    cases[run] = "has no scores yet; `vitrail evaluate"
    for folder, words in cases.items():
        with pytest.raises(ValueError, match=words) as error:
            gather_facts(folder)
        assert "\n" not in str(error.value)
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match="no folder of `vitrail train`"):
        gather_facts(run)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("weights of /srv/ann/models/vit.pth, licence mit", "weights of vit.pth, licence mit"),
        ("left out: 3 files, named in /srv/runs/a/skipped.txt", "left out: 3 files, named in skipped.txt"),
        ("~/photos/cats: 12 images", "cats: 12 images"),
        ("3 images/s, S+/4, B/16 and n/a", "3 images/s, S+/4, B/16 and n/a"),
        ("https://example.org/a/b stays", "https://example.org/a/b stays"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "timm/vit_tiny_patch16_224.augreg_in21k"),
    ],
)
def test_places_of_this_machine_are_cut(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_robustness_is_read_where_it_was_measured(run: Path, robustness: Robustness) -> None:
    robustness.save(run)
    found = gather_facts(run).robustness
    assert found is not None
    assert found.to_dict() == robustness.to_dict()


def test_the_report_draws_whatever_curves_png_draws() -> None:
    drawn = {name for _, names, _ in SCORES for name in names} | {"loss", "lr"}
    for panel in PANELS:
        assert set(panel.series) <= drawn, panel.title

"""`vitrail evaluate`: the numbers that it prints and keeps."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cases import ImageFolder
from command_line import Typed
from vitrail.weights import load, save_model


def test_evaluate_prints_and_keeps_the_numbers(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("evaluate", run, "--out", tmp_path / "scores")
    assert said.code == 0, said.err
    assert "fashion-sample, test: 2,000 images" in said.out
    assert re.search(r"top-1 +\d+\.\d % +\d+\.\d to \d+\.\d", said.out)
    assert "\x1b" not in said.out
    kept = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert kept["count"] == 2000
    assert kept["top1"] == json.loads((run / "evaluation.json").read_text())["top1"], "the number that training printed"
    for each in kept["per_class"]:
        assert re.search(rf"^ *{re.escape(each['name'])} +200 ", said.out, re.MULTILINE)
    assert (tmp_path / "scores" / "confusion.png").stat().st_size > 1000
    assert (tmp_path / "scores" / "confusion.csv").is_file()


def test_evaluate_as_json_on_another_split(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("evaluate", run, "fashion-sample", "--split", "val", "--json", "--out", tmp_path)
    numbers = json.loads(said.out)
    assert (numbers["data"], numbers["split"]) == ("fashion-sample", "val")
    assert numbers == json.loads((tmp_path / "evaluation.json").read_text())


def test_robustness_is_printed_and_kept(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("evaluate", run, "--robustness", "--images", "12", "--out", tmp_path)
    assert (said.code, said.err) == (0, "")
    assert "Robustness, on 12 of the 2,000 images; clean accuracy" in said.out
    for words in ("elastic transform", "rotation", "input size", "mean corruption error", "robustness.png"):
        assert words in said.out
    kept = json.loads((tmp_path / "robustness.json").read_text())
    again = json.loads(vitrail("evaluate", run, "--robustness", "--images", "12", "--out", tmp_path, "--json").out)
    assert {**again["robustness"], "seconds": 0} == {**kept, "seconds": 0}
    assert again["top1"] == json.loads((tmp_path / "evaluation.json").read_text())["top1"]
    assert "robustness" not in json.loads((tmp_path / "evaluation.json").read_text())
    said = vitrail("evaluate", run, "--images", "12")
    assert (said.code, said.err) == (2, "vitrail: --images 12 is for --robustness; add it, or leave --images out\n")


def test_robustness_of_a_model_without_classes_is_not_measured(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    model = load(run, num_classes=0)
    (tmp_path / "headless").mkdir()
    save_model(model, tmp_path / "headless", data="fashion-sample")
    said = vitrail("evaluate", tmp_path / "headless", "fashion-sample", "--split", "val", "--robustness")
    assert (said.code, said.err) == (
        0,
        "vitrail: robustness is not measured: it is the accuracy on images with one class each\n",
    )
    assert "effective rank" in said.out


def test_other_classes_are_refused(vitrail: Typed, run: Path, image_folder: ImageFolder) -> None:
    said = vitrail("evaluate", run, image_folder({"cat": 8, "dog": 8}))
    assert said.code == 2
    assert "has the classes cat, dog, and the model 10: " in said.err

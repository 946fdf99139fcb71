"""Accuracy on changed images: its file, its sample, and the changes beside other libraries'."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest
from torch import Tensor

import vitrail
from cases import ImageFolder
from vitrail.data.sources import open_source
from vitrail.evaluate import evaluate_run, robustness, wilson_interval
from vitrail.evaluate.corruptions import CORRUPTIONS
from vitrail.evaluate.robustness import input_sizes, measure_robustness, read_robustness

MODEL = {"depth": 1, "embed_dim": 16, "num_heads": 2}
TRAIN = {"steps": 2, "batch_size": 16, "device": "cpu", "eval_every": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vitrail.train(out=tmp_path_factory.mktemp("runs") / "tiny", model=MODEL, train=TRAIN).folder


@pytest.fixture
def photo_run(image_folder: ImageFolder, tmp_path: Path) -> Path:
    folder = image_folder({"train": {"cat": 8, "dog": 8}, "test": {"cat": 6, "dog": 3}})
    model = {"name": "Ti/16", "img_size": (32, 48), **MODEL}
    return vitrail.train(folder, recipe="from-scratch", out=tmp_path / "photo-run", model=model, train=TRAIN).folder


def test_the_file_has_every_measurement_with_its_interval(run: Path, tmp_path: Path) -> None:
    result = measure_robustness(run, images=30)
    json_file, picture = result.save(tmp_path / "new")
    found = json.loads(json_file.read_text())
    assert picture.stat().st_size > 10_000
    assert list(found["corruptions"]) == list(CORRUPTIONS)
    assert list(found["sweeps"]) == ["rotation", "scale", "jpeg", "input size"]
    assert (found["images"], found["split_images"], found["split"], found["img_size"]) == (30, 2000, "test", [28, 28])
    for entries in found["corruptions"].values():
        assert [entry["severity"] for entry in entries] == [1, 2, 3, 4, 5]
    for entries in found["sweeps"].values():
        assert [entry["value"] for entry in entries] == sorted(entry["value"] for entry in entries)
    everything = [entry for group in ("corruptions", "sweeps") for entries in found[group].values() for entry in entries]
    for entry in (*everything, found["clean"]):
        assert entry["interval"] == list(wilson_interval(round(30 * entry["accuracy"]), 30))
    for name, value in (("rotation", 0), ("scale", 1), ("input size", 1)):
        same = next(entry for entry in found["sweeps"][name] if entry["value"] == value)
        assert same["accuracy"] == found["clean"]["accuracy"]
    errors = [1 - entry["accuracy"] for entries in found["corruptions"].values() for entry in entries]
    assert found["summary"]["mean_corruption_error"]["value"] == pytest.approx(fmean(errors))
    more = fmean(errors) - (1 - found["clean"]["accuracy"])
    assert found["summary"]["relative_corruption_error"]["value"] == pytest.approx(more)
    assert all(low <= more <= high for low, high in [found["summary"]["relative_corruption_error"]["interval"]])


def test_a_measurement_repeats_in_any_batch(run: Path) -> None:
    first, second, other = (
        measure_robustness(run, images=20, batch_size=size, seed=seed) for size, seed in ((256, 0), (7, 0), (256, 1))
    )
    assert first.corruptions == second.corruptions
    assert first.sweeps == second.sweeps
    assert other.clean == first.clean, "the seed is that of the corruptions, not of the sample"
    assert other.corruptions["contrast"] == first.corruptions["contrast"]


def test_clean_accuracy_is_that_of_evaluate(photo_run: Path) -> None:
    result, evaluated = measure_robustness(photo_run), evaluate_run(photo_run)
    assert (result.images, result.split_images) == (9, 9)
    assert result.clean.value == pytest.approx(evaluated.scores.top1)  # type: ignore[attr-defined]
    assert {each.value for each in result.sweeps["input size"]} == {0.5, 1, 1.5, 2}, "whole patches of 16 pixels"


def test_classes_are_in_proportion(photo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[Tensor] = []
    original = robustness.read_sample

    def read(*arguments: object, **options: object) -> robustness.Sample:
        sample = original(*arguments, **options)  # type: ignore[arg-type]
        labels.append(sample.labels)
        return sample

    monkeypatch.setattr(robustness, "read_sample", read)
    monkeypatch.setattr(robustness, "pixel_conditions", lambda preprocessing: [])
    monkeypatch.setattr(robustness, "CORRUPTIONS", {"fog": None})
    monkeypatch.setattr(robustness, "SEVERITIES", ())
    with pytest.raises(RuntimeError):  # nothing was corrupted
        measure_robustness(photo_run, images=3)
    assert Counter(labels[0].tolist()) == {0: 2, 1: 1}


def test_a_size_that_a_model_does_not_take_is_noted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = robustness.load

    def refuse(source: str, *, img_size: tuple[int, int]) -> object:
        if img_size[0] > 40:
            raise ValueError(f"no windows of {img_size[0]}")
        return load(source, img_size=img_size)

    monkeypatch.setattr(robustness, "load", refuse)
    result = measure_robustness(run, images=10)
    assert [note for note in result.notes if "input size 56x56: no windows of 56" in note]
    assert max(each.value for each in result.sweeps["input size"]) < 1.5


def test_what_has_no_accuracy_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="images 0 must be at least 1"):
        measure_robustness(run, images=0)
    headless = vitrail.load(run, num_classes=0)
    opened = dataclasses.replace(robustness.open_run(run), model=headless)
    monkeypatch.setattr(robustness, "open_run", lambda *_, **__: opened)
    with pytest.raises(ValueError, match="has no classes, and robustness is the accuracy on one class"):
        measure_robustness(run)
    several = dataclasses.replace(open_source("fashion-sample"), multi_label=True)
    opened = dataclasses.replace(opened, model=vitrail.load(run), source=several)
    with pytest.raises(ValueError, match="any number of labels an image"):
        measure_robustness(run)


def test_sizes_are_whole_patches_and_not_the_models_own() -> None:
    model = vitrail.create_model("Ti/16", img_size=(32, 64), depth=1, num_classes=2)
    sizes = input_sizes(model, (32, 64))
    assert sizes == {0.5: (16, 32), 1.5: (48, 96), 2.0: (64, 128)}


def test_what_is_written_is_read(run: Path, tmp_path: Path) -> None:
    measured = measure_robustness(run, images=8, device="cpu")
    measured.save(tmp_path)
    found = read_robustness(tmp_path)
    assert found is not None
    assert found.to_dict() == measured.to_dict()
    name = next(iter(measured.corruptions))
    accuracies = [each.accuracy.value for each in measured.corruptions[name]]
    assert found.loss(name) == pytest.approx(measured.clean.value - sum(accuracies) / len(accuracies))
    assert read_robustness(tmp_path / "elsewhere") is None
    for text in ("", "[]", "{}", '{"images": 3}'):
        (tmp_path / "robustness.json").write_text(text)
        with pytest.raises(ValueError, match=r"(?s)robustness\.json can't be read .*--robustness"):
            read_robustness(tmp_path)

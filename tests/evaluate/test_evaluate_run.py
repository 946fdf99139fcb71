"""A run or a checkpoint is scored on data that fits it; what was assumed is reported, and other data is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cases import ImageFolder
from vitrail.data.sources import open_source
from vitrail.evaluate import evaluate_run
from vitrail.evaluate.run import check_classes, open_data
from vitrail.models import ViT
from vitrail.settings import Preprocessing
from vitrail.settings.layers import build, to_yaml
from vitrail.weights import save_model


@pytest.fixture
def photos(image_folder: ImageFolder) -> Path:
    return image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}})


def tiny(*, num_classes: int = 2, classes: tuple[str, ...] = (), multi_label: bool = False) -> ViT:
    torch.manual_seed(0)
    model = ViT(img_size=16, patch_size=8, num_classes=num_classes, embed_dim=192, depth=1, num_heads=3)
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, crop_pct=0.9)
    model.classes, model.multi_label = classes, multi_label
    return model


@pytest.fixture
def run(tmp_path: Path, photos: Path) -> Path:
    """A run folder with random weights, as a training on the photographs leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(tiny(classes=("cat", "dog")), folder, data=str(photos))
    (folder / "config.yaml").write_text(to_yaml(build([])))
    return folder


def test_a_run_is_scored_on_its_own_test_images(run: Path) -> None:
    done = evaluate_run(run, device="cpu", report=pytest.fail)
    assert (done.data, done.split, done.scores.count, done.folder) == ("photos", "test", 4, run)
    files = done.save()
    assert {path.name for path in files} == {"evaluation.json", "confusion.png", "confusion.csv", "predictions.npz"}
    assert json.loads((run / "evaluation.json").read_text()) == done.to_dict()


def test_other_images_leave_the_runs_scores_as_they_are(run: Path, photos: Path, tmp_path: Path) -> None:
    assert evaluate_run(run, split="train", device="cpu").folder == run / "evaluation-photos-train"
    assert evaluate_run(run, str(photos), device="cpu").folder == run / "evaluation-photos-test"
    evaluate_run(run, split="train", device="cpu").save(tmp_path / "scores")
    assert (tmp_path / "scores" / "evaluation.json").is_file()
    assert not (run / "evaluation.json").exists()


def test_the_notes_of_named_data_are_reported(run: Path, image_folder: ImageFolder) -> None:
    other = image_folder({"train": {"cat": 4, "dog": 4}, "val": {"cat": 2, "dog": 2}}, name="other")
    (other / "labels.csv").write_text("name,age\n")
    assert open_source(str(other)).notes
    lines: list[str] = []
    assert evaluate_run(run, str(other), device="cpu", report=lines.append).split == "val"
    assert lines == list(open_source(str(other)).notes)
    with pytest.warns(UserWarning, match=r"not used: labels.csv"):
        evaluate_run(run, str(other), device="cpu")


def test_a_checkpoint_needs_a_data_set(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"run is no folder of `vitrail train`, so it does not say its data; name DATA"):
        evaluate_run(run, device="cpu")
    assert evaluate_run(run, str(photos), device="cpu").folder == run / "evaluation-photos-test"
    save_file(tiny().state_dict(), "w.safetensors")
    with pytest.warns(UserWarning, match=r"the checkpoint calls its classes no names; taken in the order of cat, dog"):
        assert evaluate_run("w.safetensors", str(photos), device="cpu").folder == Path("evaluation-photos-test")


@pytest.mark.parametrize(
    ("classes", "number", "exact", "says"),
    [
        (("cat", "dog"), 2, True, None),
        (("dog", "cat"), 2, True, ValueError),
        (("dog", "cat"), 2, False, "the checkpoint calls its classes dog, cat; taken in the order of cat, dog"),
        ((), 2, False, "the checkpoint calls its classes no names; taken in the order of cat, dog"),
        ((), 3, False, ValueError),
    ],
)
def test_classes_fit_by_name_or_for_a_checkpoint_by_number(
    photos: Path, classes: tuple[str, ...], number: int, exact: bool, says: str | type[ValueError] | None
) -> None:
    model = tiny(num_classes=number, classes=classes)
    source = open_source(str(photos))
    if says is ValueError:
        with pytest.raises(ValueError, match=rf"photos has the classes cat, dog, and the model {number}: .*model's classes"):
            check_classes(model, source, exact=exact)
    else:
        assert check_classes(model, source, exact=exact) == says


@pytest.mark.parametrize("several", [True, False])
def test_several_labels_do_not_fit_one_class(photos: Path, several: bool) -> None:
    model = tiny(classes=("cat", "dog"), multi_label=not several)
    source = dataclasses.replace(open_source(str(photos)), multi_label=several)
    with pytest.raises(ValueError, match=r"give data of its kind"):
        check_classes(model, source, exact=True)
    assert check_classes(model, source, exact=False) is None


def test_the_data_of_a_run_is_what_it_was_trained_on(run: Path, photos: Path) -> None:
    (run / "config.yaml").write_text(to_yaml(build([{"data": {"val_fraction": 0.5}}])))
    settings, source = open_data(run)
    assert (settings.data.val_fraction, source.name) == (0.5, photos.name)
    with pytest.raises(ValueError, match=r"; name images$"):
        open_data("weights.safetensors", way_out="name images")

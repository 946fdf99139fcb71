"""`vitrail check`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from cases import ImageFolder
from command_line import TINY, Typed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_check_finds_what_is_broken(vitrail: Typed, image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"cat": 12, "dog": 12}, "val": {"cat": 2, "dog": 2}})
    typed = vitrail("check", photos, "--strict")
    assert typed.code == 0
    assert "Nothing was found." in typed.out
    shutil.copy(photos / "train/cat/0.jpg", photos / "val/cat/leak.jpg")
    before = contents(photos)
    assert vitrail("check", photos, "--exact").code == 0
    assert vitrail("check", photos, "--exact", "--strict").code == 1
    (photos / "train" / "cat" / "broken.jpg").write_bytes(b"no image")
    page, fixes = tmp_path / "check.html", tmp_path / "fix.csv"
    typed = vitrail("check", photos, "--fix-list", fixes, "--page", page)
    assert typed.code == 1
    assert "train/cat/broken.jpg: not an image" in typed.out
    assert "leakage" in typed.out
    assert "left out: label suspects" in typed.out
    with fixes.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["finding"]) for row in rows] == [
        ("train/cat/broken.jpg", "not-an-image"),
        ("train/cat/0.jpg", "leakage"),
    ]
    assert all(row["evidence"] and row["suggestion"] for row in rows)
    assert page.read_text().startswith("<!doctype html>")
    found = json.loads(vitrail("check", photos, "--json").out)
    assert found["images"] == 29
    assert found["counts"]["train"]["dog"] == 12
    assert [each["finding"] for each in found["findings"]] == ["not-an-image", "leakage"]
    (photos / "train" / "cat" / "broken.jpg").unlink()
    assert contents(photos) == before


def test_check_with_a_model(vitrail: Typed, image_folder: ImageFolder, run: Path) -> None:
    photos = image_folder({"train": {"cat": 12, "dog": 12}, "val": {"cat": 2, "dog": 2}})
    typed = vitrail("check", photos, "--weights", run, "--device", "cpu")
    assert typed.code == 0
    assert "give --weights" not in typed.out
    assert not (run / "check.json").exists(), "its report is not of these images"
    typed = vitrail("check", "fashion-sample", "--weights", run, "--exact", "--device", "cpu")
    assert f"Written: {run / 'check.json'}" in typed.out
    assert json.loads((run / "check.json").read_text())["images"] == 12_000
    assert vitrail("report", run).code == 0
    assert "Check of the data" in (run / "report.html").read_text()


def test_check_of_data_that_is_not_there(vitrail: Typed) -> None:
    typed = vitrail("check", "nowhere")
    assert typed.code == 2
    assert "neither a folder nor one of" in typed.err


def test_train_says_what_it_found(vitrail: Typed, image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"cat": 12, "dog": 12}, "val": {"cat": 2, "dog": 2}})
    shutil.copy(photos / "train/cat/0.jpg", photos / "val/cat/leak.jpg")
    typed = vitrail("train", photos, "--recipe", "from-scratch", "--out", tmp_path / "run", "--model.img_size", "32", *TINY)
    assert typed.code == 0
    assert "check: 1 file equal to another, 1 of them in more than one split" in typed.out + typed.err

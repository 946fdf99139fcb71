from __future__ import annotations

import shutil
from pathlib import Path

from cases import ImageFolder
from vitrail.check.before_training import check_before_training
from vitrail.data.sources import open_source


def lines(root: Path, **options: float) -> list[str]:
    return check_before_training(open_source(str(root), val_fraction=0), **options)


def test_nothing_is_said_of_a_clean_folder(image_folder: ImageFolder) -> None:
    assert lines(image_folder({"train": {"cat": 12, "dog": 12}, "test": {"cat": 2, "dog": 2}})) == []


def test_three_lines_say_what_was_found(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 40, "dog": 3}, "test": {"cat": 2}})
    shutil.copy(root / "train/cat/0.jpg", root / "train/cat/copy.jpg")
    shutil.copy(root / "train/cat/1.jpg", root / "test/cat/leak.jpg")
    shutil.copy(root / "train/cat/2.jpg", root / "train/dog/other.jpg")
    (root / "test/cat/0.jpg").rename(root / "test/cat/0.png")
    (root / "test/cat/1.jpg").write_bytes(b"no image")
    found = lines(root)
    assert len(found) == 3
    assert found[0].startswith("check: 3 files equal to another, 1 of them in more than one split, 1 under different labels")
    assert 'class "dog": 4 training images; no image in test' in found[1]
    assert "10 to 1" in found[1]
    assert "can't be read" in found[2]
    assert "test/cat/0.png is JPEG" in found[2]


def test_files_are_compared_as_long_as_there_is_time(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 12, "dog": 12}})
    shutil.copy(root / "train/cat/0.jpg", root / "train/cat/copy.jpg")
    assert len(lines(root)) == 1
    assert lines(root, seconds=-1) == []


def test_a_folder_without_classes(image_folder: ImageFolder) -> None:
    root = image_folder({"album": 12})
    shutil.copy(root / "album/0.jpg", root / "copy.jpg")
    found = check_before_training(open_source(str(root), val_fraction=0, classes=False))
    assert len(found) == 1
    assert found[0].startswith("check: 1 file equal to another, such as ")


def test_a_named_set_is_not_looked_at() -> None:
    assert check_before_training(open_source("fashion-sample")) == []

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vitrail.data.check import check

ImageFolder = Callable[..., Path]


def test_a_folder_with_everything_wrong(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 3, "dog": 2}, "val": {"cat": 1}, "test": {"dog": 1}}, size=(40, 32))
    shutil.copy(root / "train/cat/2.jpg", root / "test/dog/copy.jpg")
    shutil.copy(root / "train/cat/1.jpg", root / "train/cat/twice.jpg")  # on one side: no leak
    Image.new("L", (5, 7)).save(root / "val/cat/grey.png")
    (root / "train/dog/notes.txt").write_text("no image")
    half = (root / "train/dog/1.jpg").read_bytes()[:600]
    (root / "train/dog/1.jpg").write_bytes(half)
    report = check(str(root))
    assert report.counts == {"train": {"cat": 4, "dog": 1}, "val": {"cat": 2, "dog": 0}, "test": {"cat": 0, "dog": 2}}
    assert report.images == 9
    assert report.sizes == {(40, 32): 8, (7, 5): 1}
    assert report.modes == {"RGB": 8, "L": 1}
    assert [file.path for file in report.bad] == ["train/dog/1.jpg", "train/dog/notes.txt"]
    assert ("train/cat/2.jpg", "test/dog/copy.jpg") in report.duplicates
    text = str(report)
    assert text.startswith("photos: 9 images, 2 classes, 2 unreadable files\n")
    assert "short side: 5 to 32 px, half of them up to 32 px" in text
    assert "unreadable: train/dog/notes.txt: not an image" in text
    assert "the same image on two sides: train/cat/2.jpg, test/dog/copy.jpg" in text


def test_a_report_is_json(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 3, "dog": 3}, "test": {"cat": 1, "dog": 1}})
    (root / "train" / "cat" / "broken.jpg").write_bytes(b"no image")
    report = check(str(root))
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (read["name"], read["images"]) == (report.name, 8)
    assert read["counts"]["train"]["dog"] == report.counts["train"]["dog"]
    assert read["sizes"] == [{"height": 40, "width": 32, "images": 8}]
    assert read["bad"] == [{"path": "train/cat/broken.jpg", "reason": report.bad[0].reason}]
    assert "labels" not in read


def test_one_image_under_two_classes(image_folder: ImageFolder) -> None:
    root = image_folder({"Train": {"cat": 3, "dog": 2}, "valid": {"cat": 1}, "extra": {"x": 1}}, size=(40, 32))
    shutil.copy(root / "Train/cat/2.jpg", root / "Train/dog/copy.jpg")
    shutil.copy(root / "Train/cat/1.jpg", root / "Train/cat/twice.jpg")  # the class is the same
    report = check(str(root))
    assert report.contradictions == (("Train/cat/2.jpg", "Train/dog/copy.jpg"),)
    assert "the same image under two classes: Train/cat/2.jpg, Train/dog/copy.jpg" in str(report)
    assert "Train/ is train, valid/ is val; not used: extra/" in str(report)


def test_one_image_with_two_sets_of_labels(image_folder: ImageFolder) -> None:
    root = image_folder({"photos": 2})
    for name in ("2.jpg", "3.jpg"):
        shutil.copy(root / "photos/0.jpg", root / "photos" / name)
    lines = [
        "path,labels,split",
        "photos/0.jpg,a;b,train",
        "photos/1.jpg,a,train",
        "photos/2.jpg,b,train",
        "photos/3.jpg,b;a,train",
    ]
    (root / "labels.csv").write_text("\n".join(lines))
    report = check(str(root), val_fraction=0)
    assert report.contradictions == (("photos/0.jpg", "photos/2.jpg", "photos/3.jpg"),)
    assert "the same image under two labels: photos/0.jpg" in str(report)


def test_a_folder_where_nothing_is_readable(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 8, "dog": 8}})
    for file in root.glob("*/*/*"):
        file.write_bytes(b"gone")
    report = check(str(root), val_fraction=0.0)
    assert (report.images, len(report.bad)) == (0, 16)
    assert "and 6 more unreadable files" in str(report)


def test_a_named_set(idx_set: Path) -> None:
    report = check("mnist", val_fraction=0.25)
    assert {split: sum(classes.values()) for split, classes in report.counts.items()}["test"] == 20
    assert report.images == 80
    assert (report.sizes, report.modes, report.bad, report.duplicates) == ({(28, 28): 80}, {"L": 80}, (), ())


def test_an_image_in_the_training_and_the_test_file(idx_set: Path) -> None:
    train, test = (idx_set / f"{part}-images-idx3-ubyte" for part in ("train", "t10k"))
    data = bytearray(test.read_bytes())
    data[16 : 16 + 784] = train.read_bytes()[16 : 16 + 784]
    test.write_bytes(data)
    assert check("mnist", val_fraction=0.0).duplicates == (("mnist/train/0", "mnist/test/0"),)


def test_no_data_set() -> None:
    with pytest.raises(ValueError, match="neither a folder nor one of"):
        check("nothing-of-the-kind")

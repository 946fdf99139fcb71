from __future__ import annotations

from pathlib import Path

import pytest

from vitrail.data.splits import find_splits, split_of


def layout(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        if not folder.startswith("empty"):
            (root / folder / "1.jpg").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train Train TRAINING trn train_set TrainSet trainset train-images Train_Data seg_train train2017 train_224", "train"),
        ("val Valid validation VALIDATE valset val2017 dev eval Evaluation holdout hold-out hold_out Development", "val"),
        ("test Testing TEST_SET test_images tst seg_test images_test testSet", "test"),
    ],
)
def test_names_of_splits(names: str, split: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize("name", ["cat", "trains", "train_station", "test_tube", "device", "seg", "set", "", "2017", "trainee"])
def test_names_of_classes(name: str) -> None:
    assert split_of(name) is None


@pytest.mark.parametrize(
    ("training", "other", "split"),
    [
        ("train", "valid", "val"),
        ("train", "dev", "val"),
        ("train", "eval", "val"),
        ("train", "holdout", "val"),
        ("Training", "Testing", "test"),
        ("train_set", "test_set", "test"),
        ("seg_train", "seg_test", "test"),
        ("training", "validation", "val"),
        ("TRAIN", "Val", "val"),
        ("train", "Testing", "test"),
        ("flowers_train", "flowers_test", "test"),
    ],
)
def test_folders_of_two_splits(tmp_path: Path, training: str, other: str, split: str) -> None:
    root = layout(tmp_path, *(f"{folder}/{name}" for folder in (training, other) for name in ("cat", "dog")), "extra/a")
    found = find_splits(root)
    assert found.folders == {"train": training, split: other}
    assert found.unused == ("extra",)
    assert str(found) == f"{training}/ is train, {other}/ is {split}; not used: extra/"


def test_an_eval_beside_val_is_the_test(tmp_path: Path) -> None:
    root = layout(tmp_path, *(f"{folder}/{name}" for folder in ("train", "val", "eval") for name in ("cat", "dog")))
    assert find_splits(root).folders == {"train": "train", "val": "val", "test": "eval"}


def test_folders_in_folders_of_the_same_name(tmp_path: Path) -> None:
    """As Intel's scenes unpack."""
    root = layout(
        tmp_path,
        *(f"{folder}/{folder}/{name}" for folder in ("seg_train", "seg_test") for name in ("sea", "ice")),
        "seg_pred/x",
    )
    found = find_splits(root)
    assert found.folders == {"train": "seg_train/seg_train", "test": "seg_test/seg_test"}
    assert found.unused == ("seg_pred",)


@pytest.mark.parametrize("names", [("train", "bus"), ("train_station", "test_tube"), ("dev", "ops"), ("eval", "holdout")])
def test_classes_that_are_called_like_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Pictures of trains: no folder has folders in it; or words that are splits beside training images only."""
    assert find_splits(layout(tmp_path, *names)).folders == {}
    inside = [f"{name}/2024" for name in names if name != "train"]
    assert find_splits(layout(tmp_path, *inside)).folders == {}


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("train/a", "val/a", "validation/a"), "two folders of val images, val and validation; keep one"),
        (("train/a", "Training/a"), "two folders of train images, train and Training; keep one"),
        (("train/a", "dev/a", "holdout/a", "test/a"), "two folders of val images, dev and holdout; keep one"),
        (("dataset/train/a", "dataset/test/a"), r"dataset/train has; did you mean .*/dataset\?$"),
        (("dataset/Training/a", "docs"), r"dataset/Training has; did you mean .*/dataset\?$"),
        (
            ("cats/train", "cats/test", "dogs/train", "dogs/test"),
            r"cats holds splits \(test, train\); put them outside .*train/cats",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, folders: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find_splits(layout(tmp_path, *folders))


def test_a_folder_above_the_classes(tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"holds one folder, images, and the classes are in that; did you mean .*/images\?$"):
        find_splits(tmp_path)

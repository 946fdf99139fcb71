"""Folders without classes: trees, splits, and what is held out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data.dataset import NoClasses, stable_fraction
from vitrail.data.folder import FolderSource
from vitrail.data.sources import open_source
from vitrail.data.unlabelled import UnlabelledSource
from vitrail.settings import DataConfig, Preprocessing

Album = Callable[..., Path]


@pytest.fixture
def album(tmp_path: Path) -> Album:
    """Makes images at paths, "a/{}.png" for several."""

    def make(**counts: int) -> Path:
        root = tmp_path / "album"
        for folder, count in counts.items():
            place = root / folder.replace("__", "/") if folder != "loose" else root
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.fromarray(np.full((8, 9, 3), 7 * i % 256, dtype=np.uint8)).save(place / f"{i}.png")
        return root

    return make


def opened(root: Path, **options: float) -> FolderSource:
    source = open_source(str(root), classes=False, **options)  # type: ignore[arg-type]
    assert isinstance(source, FolderSource)
    return source


def paths(source: FolderSource, split: str) -> list[str]:
    return [file.path for file in source.files[split]]  # type: ignore[index]


@pytest.mark.parametrize(
    "counts",
    [{"loose": 30}, {"a": 30}, {"a__b__c": 30}, {"loose": 10, "a": 10, "b__c": 10}, {"all__a": 15, "all__b": 15}],
    ids=["loose", "one folder", "deep", "mixed", "one folder above two"],
)
def test_any_tree_has_no_classes(album: Album, counts: dict[str, int]) -> None:
    root = album(**counts)
    source = opened(root, val_fraction=0.3)
    assert isinstance(source, UnlabelledSource)
    assert (source.classes, source.splits, source.class_counts()) == ((), ("train", "val"), ())
    assert source.train_images() == len(paths(source, "train"))
    everything = sorted(paths(source, "train") + paths(source, "val"))
    assert everything == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    assert set(paths(source, "val")) == {path for path in everything if stable_fraction(path) < 0.3}
    split = source.load(
        "train", preprocessing=Preprocessing(img_size=(8, 8), in_channels=3, mean=(0.0,) * 3, std=(1.0,) * 3), cfg=DataConfig()
    )
    assert set(split.labels.tolist()) == {-1}


def test_an_image_stays_on_its_side_when_others_come(album: Album) -> None:
    before = set(paths(opened(album(loose=40)), "val"))
    after = set(paths(opened(album(loose=40, later=40)), "val"))
    assert before == {path for path in after if "/" not in path}


@pytest.mark.parametrize(
    ("counts", "splits"),
    [
        ({"train": 6, "val": 3}, {"train": 6, "val": 3}),
        ({"train": 6, "val": 3, "test": 2}, {"train": 6, "val": 3, "test": 2}),
        ({"train__a__b": 6, "test": 2, "val": 1}, {"train": 6, "val": 1, "test": 2}),
        ({"Training": 6, "validation": 3}, {"train": 6, "val": 3}),
    ],
)
def test_folders_of_splits_are_honoured(album: Album, counts: dict[str, int], splits: dict[str, int]) -> None:
    source = opened(album(**counts))
    assert source.classes == ()
    assert {split: len(files) for split, files in source.files.items()} == splits


def test_without_validation_images_some_are_held_out_of_train(album: Album) -> None:
    source = opened(album(train=40, test=5), val_fraction=0.25)
    assert source.splits == ("train", "val", "test")
    assert all(path.startswith("train/") for path in paths(source, "val"))
    assert opened(album(train=40, test=5), val_fraction=0.0).splits == ("train", "test")


def test_a_folder_called_train_among_others_is_one_of_the_tree(album: Album) -> None:
    source = opened(album(train=5, boat=5, plane__jet=5, loose=5), val_fraction=0.0)
    assert len(paths(source, "train")) == 20


def test_classes_stay_classes(album: Album) -> None:
    root = album(cat=10, dog=10)
    assert opened(root).classes == ("cat", "dog")
    assert opened(root) == open_source(str(root))
    album(loose=1)  # one of 21 is more than a slip
    assert opened(root).classes == ()
    assert opened(root).notes == ("1 image outside of class folders: all are used, and none has a class",)
    assert open_source(str(root)).classes == ("cat", "dog")


def test_notes_and_tables_are_no_images(album: Album) -> None:
    root = album(a=10)
    for name in ("README.md", "a/index.csv", "a/notes.txt"):
        (root / name).write_text("x")
    source = opened(root)
    [note] = source.notes
    assert note.startswith("not used: 3 files of notes or tables (")
    assert not [path for path in paths(source, "train") if not path.endswith(".png")]


def test_training_needs_classes(album: Album) -> None:
    root = album(loose=5)
    with pytest.raises(
        NoClasses, match=r"stand outside of class folders; .*, or learn without classes: `vitrail pretrain .*album`$"
    ):
        open_source(str(root))
    with pytest.raises(NoClasses, match=r"has one class only, .*; learn without classes: `vitrail pretrain .*album`$"):
        open_source(str(album(a=5)))


def test_a_folder_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match=r'^data "nowhere" is neither a folder nor one of'):
        open_source("nowhere", classes=False)

from __future__ import annotations

from pathlib import Path

import pytest

from cases import ImageFolder
from vitrail.data.sources import NAMES, open_source
from vitrail.settings import DataConfig, Preprocessing


def test_names_come_before_folders_and_paths_are_folders(image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder({"train": {"a": 2, "b": 2}}, name="fashion-sample")
    monkeypatch.chdir(root.parent)
    assert open_source("fashion-sample").img_size == (28, 28)
    assert open_source("./fashion-sample").classes == ("a", "b")
    monkeypatch.chdir(root)
    assert open_source(".").name == "fashion-sample"


@pytest.mark.parametrize(("typed", "hint"), [("fashion_mnist", "fashion-mnist"), ("cifar-10", "cifar10"), ("mnists", "mnist")])
def test_a_name_that_is_none_names_the_nearest(typed: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f'data "{typed}" is neither a folder nor one of') as error:
        open_source(typed)
    assert str(error.value).endswith(f'did you mean "{hint}"?')
    assert all(name in str(error.value) for name in NAMES)
    assert "\n" not in str(error.value)


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a folder"):
        open_source(str(tmp_path / "photo.jpg"))


def test_imagenet_is_never_downloaded(image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITRAIL_DATA", raising=False)
    with pytest.raises(
        ValueError, match="can't be downloaded; put its train/ and val/, a folder per class, into FOLDER/imagenet"
    ):
        open_source("imagenet")
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"into {tmp_path / 'imagenet'}"):
        open_source("imagenet")
    image_folder({"train": {"n01440764": 2, "n01443537": 2}, "val": {"n01440764": 1}}, name="imagenet")
    source = open_source("imagenet")
    assert (source.classes, source.splits) == (("n01440764", "n01443537"), ("train", "val"))


def test_a_split_that_is_not_there(image_folder: ImageFolder) -> None:
    source = open_source(str(image_folder({"train": {"a": 2, "b": 2}})), val_fraction=0.0)
    colour = Preprocessing(img_size=(8, 8), in_channels=3, mean=source.mean, std=source.std)
    with pytest.raises(ValueError, match='photos has no split "test"; it has train'):
        source.load("test", preprocessing=colour, cfg=DataConfig())

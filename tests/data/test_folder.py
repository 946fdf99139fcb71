from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cases import ImageFolder
from vitrail.data.dataset import stable_fraction
from vitrail.data.files import FileSplit
from vitrail.data.folder import held_out_files, open_folder, split_without_folders
from vitrail.data.memory import FixedSplit, RaggedSplit
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing

RGB = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
IN_FILES = DataConfig(memory_gb=0.0, workers=0)
EASY = DataConfig(max_bad=1.0)


def names(folder: Path, **options: float) -> dict[str, list[str]]:
    source = open_folder(folder, val_fraction=options.get("val_fraction", 0.1))
    return {split: [file.path for file in files] for split, files in source.files.items()}


def test_three_split_folders(image_folder: ImageFolder) -> None:
    for validation in ("val", "validation", "Validation"):
        root = image_folder({"train": {"b": 3, "a": 2}, validation: {"a": 1}, "test": {"b": 2}}, name=validation)
        source = open_folder(root, val_fraction=0.5)
        assert (source.name, source.classes, source.channels, source.img_size) == (validation, ("a", "b"), 3, None)
        assert source.splits == ("train", "val", "test")
        split = source.load("train", preprocessing=RGB, cfg=DataConfig())
        assert list(split.names) == ["train/a/0.jpg", "train/a/1.jpg", "train/b/0.jpg", "train/b/1.jpg", "train/b/2.jpg"]
        assert split.labels.tolist() == [0, 0, 1, 1, 1]
        assert source.load("test", preprocessing=RGB, cfg=DataConfig()).labels.tolist() == [1, 1]
        with pytest.raises(ValueError, match="in_channels 2 does not fit"):
            source.load(
                "val", preprocessing=Preprocessing(img_size=(8, 8), in_channels=2, mean=(0,), std=(1,)), cfg=DataConfig()
            )


def test_validation_images_are_held_out_of_train(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"a": 30, "b": 30}, "test": {"a": 1, "b": 1}})
    found = names(root, val_fraction=0.2)
    assert set(found["val"]) == {path for path in found["train"] + found["val"] if stable_fraction(path) < 0.2}
    assert 0 < len(found["val"]) < 30
    assert set(names(root, val_fraction=0.0)) == {"train", "test"}


def test_a_file_never_changes_sides_when_others_are_added(image_folder: ImageFolder) -> None:
    root = image_folder({"a": 60, "b": 60})
    before = names(root)
    assert {split: len(files) for split, files in before.items()} == {"train": 93, "val": 15, "test": 12}  # 80/10/10, by chance
    image_folder({"a": 90, "c": 20})
    (root / "b" / "3.jpg").unlink()
    after = names(root)
    for split, files in before.items():
        assert set(files) - {"b/3.jpg"} <= set(after[split])


def test_the_share_of_a_stable_hash() -> None:
    draws = np.array([stable_fraction(f"class/{i}.jpg") for i in range(20_000)])
    assert abs((draws < 0.8).mean() - 0.8) < 0.01
    assert stable_fraction("class/1.jpg") == 0.17123388757909208  # written down: it must never change
    assert stable_fraction("class/\udcff.jpg") < 1  # a name that is no UTF-8


def test_classes_sort_as_people_count(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"class10": 1, "class2": 1, "Class1": 1, "42": 1}})
    assert open_folder(root, val_fraction=0).classes == ("42", "Class1", "class2", "class10")


def test_litter_is_passed_over_and_other_files_are_bad(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"a": 3, "b": 3, ".hidden": 1, "__MACOSX": 2}, "test": {"a": 1, "b": 1}})
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.jpg"):
        (root / "train" / "a" / litter).write_bytes(b"litter")
    (root / "LICENSE").write_text("not in a class folder")
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / "a" / "deep" / "er").mkdir(parents=True)
    shutil.move(root / "train" / "a" / "2.jpg", root / "train" / "a" / "deep" / "er" / "2.JPG")
    source = open_folder(root, val_fraction=0.0)
    assert source.classes == ("a", "b")
    split = source.load("train", preprocessing=RGB, cfg=EASY)
    assert "train/a/deep/er/2.JPG" in split.names
    assert [file.path for file in split.skipped] == ["train/a/notes.txt"]
    assert "not an image" in split.skipped[0].reason
    assert len(split) == 6


def test_links_are_followed_but_not_in_a_ring(image_folder: ImageFolder) -> None:
    root = image_folder({"a": 30, "b": 30})
    (root / "a" / "again").symlink_to(root / "a")
    (root / "c").symlink_to(root / "b")
    (root / "b" / "dangling.jpg").symlink_to(root / "nowhere.jpg")
    found = names(root)
    assert sum(map(len, found.values())) == 92
    assert open_folder(root, val_fraction=0).classes == ("a", "b", "c")


def test_a_class_that_is_called_train(image_folder: ImageFolder) -> None:
    root = image_folder({"train": 30, "bus": 30})  # pictures of trains and buses
    assert open_folder(root, val_fraction=0.1).classes == ("bus", "train")


def test_grey_folders(image_folder: ImageFolder) -> None:
    root = image_folder({"a": 30, "b": 30})
    for file in root.glob("*/*.jpg"):
        Image.open(file).convert("L").save(file)
    source = open_folder(root, val_fraction=0.1)
    assert (source.channels, len(source.mean), len(source.std)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({"train": {"a": 2, "b": 2}, "val": {"a": 1, "c": 1}}, 'class "c" is in val but not in train'),
        ({"train": {"a": 2}}, 'one class only, "a"'),
        ({"a": 50}, 'one class only, "a"'),
        ({"train": {"a": 2, "b": 2, "c": 0}}, "train/c holds no files"),
        ({"train": {"a": 2, "b": 2}, "val": {"a": 1}, "validation": {"a": 1}}, "two folders of val images"),
        ({"a": 0, "b": 0}, "no images in class folders: it is empty"),
        ({"a": 2, "b": 2, "c": 0}, "photos/c holds no files; add images of this class or remove the folder"),
        ({"a": 2, b"\xff".decode(errors="surrogateescape"): 2}, r"class folder \\udcff is no UTF-8; rename it"),
    ],
)
def test_folders_that_can_t_be_trained_on(image_folder: ImageFolder, layout: dict[str, dict[str, int]], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        open_folder(image_folder(layout), val_fraction=0.1)
    assert "\n" not in str(error.value)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        open_folder(tmp_path / "nowhere", val_fraction=0.1)
    with pytest.raises(ValueError, match="it is empty"):
        open_folder(tmp_path, val_fraction=0.1)
    Image.new("L", (8, 8)).save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match="stand outside of class folders; put the images of each class"):
        open_folder(tmp_path, val_fraction=0.1)


def damage(root: Path) -> set[str]:
    """Ten kinds of broken files among sound ones."""
    folder = root / "train" / "a"
    whole = (folder / "0.jpg").read_bytes()
    Image.new("RGB", (40, 40)).save(folder / "large.bmp")
    png = root / "some.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)  # of some noise the flipped file can be decoded
    Image.fromarray(noise).save(png)
    broken = {
        "empty.jpg": b"",
        "text.jpg": b"not a picture",
        "half.jpg": whole[: len(whole) // 2],
        "tail.jpg": whole[:-40],
        "half.png": png.read_bytes()[:1000],
        "flipped.png": png.read_bytes()[:300] + bytes(200) + png.read_bytes()[500:],
        "zeros.jpg": bytes(len(whole)),
        "page.jpg": b"<html>404</html>",
        "half.bmp": (folder / "large.bmp").read_bytes()[:2000],
        "wide.jpg": b"",
    }
    png.unlink()
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    Image.new("1", (10_000, 5_001)).save(folder / "wide.jpg", "PNG")
    return {f"train/a/{name}" for name in broken}


@pytest.mark.parametrize("cfg", [EASY, DataConfig(max_bad=1.0, memory_gb=0.0, workers=0)], ids=["memory", "files"])
@pytest.mark.parametrize("augment", [None, AugmentConfig()], ids=["view", "crop"])
def test_broken_files_are_left_out_and_named(image_folder: ImageFolder, cfg: DataConfig, augment: AugmentConfig | None) -> None:
    root = image_folder({"train": {"a": 4, "b": 4}})
    bad = damage(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = open_folder(root, val_fraction=0.0).load("train", preprocessing=RGB, cfg=cfg, augment=augment)
        batch, failures = split.read(torch.arange(len(split)))
    named = {file.path for file in (*split.skipped, *failures)}
    assert named == bad
    assert len(batch) == 9
    assert {file.path for file in split.skipped} >= bad - {"train/a/flipped.png"}  # sound at both ends: found when decoded
    assert all(file.reason and "\n" not in file.reason for file in (*split.skipped, *failures))


def test_too_many_bad_files_are_refused_and_named(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"a": 4, "b": 4}})
    damage(root)
    source = open_folder(root, val_fraction=0.0)
    with pytest.raises(
        ValueError, match=r"10 of 19 files for train in .* can't be read, more than data\.max_bad 0\.5"
    ) as error:
        source.load("train", preprocessing=RGB, cfg=DataConfig(max_bad=0.5))
    assert "train/a/empty.jpg: the file is empty" in str(error.value)
    assert "; and 7 more" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(source.load("train", preprocessing=RGB, cfg=DataConfig(max_bad=0.6))) == 9


def test_no_readable_image_at_all(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"a": 2, "b": 2}})
    for file in root.glob("train/*/*"):
        file.write_bytes(b"gone")
    with pytest.raises(ValueError, match="no readable image in its 4 files for train"):
        open_folder(root, val_fraction=0.0).load("train", preprocessing=RGB, cfg=EASY)


def test_memory_and_files_hold_the_same_images(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"a": 3, "b": 2}}, size=(90, 60))
    source, everything = open_folder(root, val_fraction=0.0), torch.arange(5)
    for augment in (None, AugmentConfig(crop="pad"), AugmentConfig(crop="none")):
        kept = source.load("train", preprocessing=RGB, cfg=DataConfig(), augment=augment)
        read = source.load("train", preprocessing=RGB, cfg=IN_FILES, augment=augment)
        assert isinstance(kept, FixedSplit)
        assert isinstance(read, FileSplit)
        one, two = kept.read(everything)[0], read.read(everything)[0]
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.boxes, two.boxes)
        assert torch.equal(one.labels, two.labels)
    kept = source.load("train", preprocessing=RGB, cfg=DataConfig(), augment=AugmentConfig())
    read = source.load("train", preprocessing=RGB, cfg=IN_FILES, augment=AugmentConfig())
    assert isinstance(kept, RaggedSplit)
    assert kept.sizes.tolist() == [[36, 24]] * 5  # the short side is 1.5 times 16
    assert read.sizes.tolist() == [[90, 60]] * 5
    boxes = torch.tensor([[30.0, 0.0, 45.0, 60.0]]).expand(5, 4)
    images = read.read(everything, boxes=boxes)[0].images
    for image, name in zip(images, read.names, strict=True):
        cut = Image.open(root / name).crop((0, 30, 60, 75)).resize((16, 16), Image.Resampling.BICUBIC)
        difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(cut, int))
        assert difference.mean() < 25  # noise, decoded at half the scale


def test_ragged_photographs_stand_in_the_corner_of_one_canvas(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"a": 1}}, size=(20, 10))
    image_folder({"train": {"b": 1}}, size=(12, 30))
    split = open_folder(root, val_fraction=0.0).load("train", preprocessing=RGB, cfg=DataConfig(), augment=AugmentConfig())
    batch, _ = split.read(torch.tensor([1, 0]))
    assert batch.images.shape == (2, 3, 20, 30)
    assert batch.sizes.tolist() == [[12, 30], [20, 10]]
    assert batch.boxes.tolist() == [[0, 0, 12, 30], [0, 0, 20, 10]]
    assert not batch.images[0, :, 12:].any()
    assert not batch.images[1, :, :, 10:].any()
    assert torch.equal(
        batch.images[1, :, :, :10], torch.from_numpy(np.array(Image.open(root / "train/a/0.jpg"))).permute(2, 0, 1)
    )


def test_a_file_that_breaks_later_costs_one_image(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"a": 3, "b": 2}})
    split = open_folder(root, val_fraction=0.0).load("train", preprocessing=RGB, cfg=IN_FILES, augment=AugmentConfig())
    (root / "train/a/1.jpg").unlink()
    (root / "train/b/0.jpg").write_bytes(b"overwritten")
    batch, failures = split.read(torch.tensor([4, 3, 2, 1, 0]), boxes=torch.tensor([[0.0, 0.0, 20.0, 20.0]]).expand(5, 4))
    assert batch.indexes.tolist() == [4, 2, 0]
    assert batch.labels.tolist() == [1, 0, 0]
    assert batch.boxes.tolist() == [[0, 0, 16, 16]] * 3
    assert [file.path for file in failures] == ["train/b/0.jpg", "train/a/1.jpg"]
    split.record(failures)
    split.record(failures)
    assert split.skipped == failures  # each once
    nothing, failures = split.read(torch.tensor([1, 3]))
    assert len(nothing) == 0
    assert nothing.images.shape == (0, 3, 16, 16)
    assert len(failures) == 2


@given(st.lists(st.tuples(st.text(min_size=1), st.sets(st.sampled_from("abcd"), min_size=1)), unique_by=lambda item: item[0]))
def test_every_label_has_a_training_image(files: list[tuple[str, set[str]]]) -> None:
    labels = set().union(*(labels for _, labels in files))
    sides = split_without_folders(files)
    assert set().union(*(labels for file, labels in files if sides[file] == "train")) == labels
    assert sides.keys() == {file for file, _ in files}
    for fraction in (0.1, 0.5, 0.999):
        held_out = held_out_files(files, fraction)
        assert set().union(*(labels for file, labels in files if file not in held_out)) == labels
        assert all(stable_fraction(file) < fraction for file in held_out)


def test_one_image_a_class(image_folder: ImageFolder) -> None:
    """Whatever their hashes say, there is one of each in train."""
    layout = {f"class{k}": 1 for k in range(12)}
    source = open_folder(image_folder(layout), val_fraction=0.5)
    assert {file.label for file in source.files["train"]} == set(range(12))
    split = open_folder(image_folder({"train": layout}, name="with-train"), val_fraction=0.9)
    assert {file.label for file in split.files["train"]} == set(range(12))


def test_one_name_in_two_spellings_is_one_class(image_folder: ImageFolder) -> None:
    """Mac systems write "é" as an e and an accent."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = image_folder({"train": {composed: 2, "tea": 2}, "test": {decomposed: 1, "tea": 1}})
    source = open_folder(root, val_fraction=0)
    assert source.classes == (composed, "tea")
    both = image_folder({composed: 20, decomposed: 20, "tea": 20}, name="both")
    assert open_folder(both, val_fraction=0).classes == (composed, "tea")


@pytest.mark.parametrize("splits", [True, False])
def test_a_class_without_a_readable_image_is_refused(image_folder: ImageFolder, splits: bool) -> None:
    root = image_folder({"train": {"a": 30, "b": 30}} if splits else {"a": 30, "b": 30})
    for file in (root / "train" / "b" if splits else root / "b").iterdir():
        file.write_bytes(b"gone")
    source = open_folder(root, val_fraction=0.0)
    for cfg in (EASY, DataConfig(max_bad=1.0, memory_gb=0.0, workers=0)):
        with pytest.raises(
            ValueError, match=r'class "b" has no readable training image \(.*b/\d+.jpg: not an image.*; add some, or'
        ):
            source.load("train", preprocessing=RGB, cfg=cfg)


def test_what_is_not_used_is_said(image_folder: ImageFolder) -> None:
    root = image_folder({"Training": {"a": 2, "b": 2}, "Testing": {"a": 1, "b": 1}, "spare": {"a": 1}})
    for loose in ("1.jpg", "Training/2.HEIC", "README.md"):
        (root / loose).write_bytes(b"")
    assert open_folder(root, val_fraction=0.0).notes == (
        "Training/ is train, Testing/ is test; not used: spare/",
        "not used: 1 image outside of class folders (Training/2.HEIC)",
    )
    assert (
        open_folder(image_folder({"train": {"a": 2, "b": 2}, "validation": {"a": 1}}, name="plain"), val_fraction=0).notes == ()
    )


def test_our_own_output_is_no_class(image_folder: ImageFolder) -> None:
    root = image_folder({"a": 30, "b": 30})
    before = open_folder(root, val_fraction=0.1)
    (root / "runs" / "first").mkdir(parents=True)
    (root / "runs" / "first" / "config.yaml").write_text("# Every setting of this run. To run it again: …\n", encoding="utf-8")
    (root / "runs" / "first" / "confusion.png").write_bytes(b"")
    assert open_folder(root, val_fraction=0.1) == before
    within = image_folder({"train": {"a": 3, "b": 3}}, name="within")
    (root / "runs" / "first").rename(within / "train" / "first")
    assert open_folder(within, val_fraction=0.0).classes == ("a", "b")

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted import NEAR, blurred, darkened, photo

from cases import ImageFolder
from vitrail.check import CheckedData, check


def paths(checked: CheckedData, kind: str) -> set[str]:
    return {path for finding in checked.of_kind(kind) for path in finding.paths}


def save(picture: Image.Image, path: Path, **options: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)  # type: ignore[arg-type]
    return path.name


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photographs of two classes in three splits, none like another."""
    root, seed = tmp_path_factory.mktemp("data") / "photos", 0
    for split, count in (("train", 20), ("val", 5), ("test", 5)):
        for name in ("cat", "dog"):
            for number in range(count):
                save(photo(seed), root / split / name / f"{number}.jpg", quality=92)
                seed += 1
    return root


@pytest.fixture
def photos(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "photos"))


def test_nothing_is_found_in_a_clean_folder(clean: Path) -> None:
    checked = check(clean)
    assert checked.findings == ()
    assert checked.counts["train"] == {"cat": 20, "dog": 20}
    assert checked.images == 60
    assert (checked.sizes, checked.modes, checked.formats) == ({(120, 160): 60}, {"RGB": 60}, {"JPEG": 60})


def test_every_fault_of_a_file_is_found(photos: Path) -> None:
    cats = photos / "train" / "cat"
    jpeg, png = (cats / "0.jpg").read_bytes(), photos / "train" / "dog" / "corrupt.png"
    planted = {"truncated": {"cut.jpg", "short.jpg"}, "not-an-image": {"empty.jpg", "text.jpg"}, "oversized": {"huge.png"}}
    (cats / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (cats / "short.jpg").write_bytes(jpeg[:-40])
    (cats / "empty.jpg").write_bytes(b"")
    (cats / "text.jpg").write_text("no image")
    save(Image.new("1", (8000, 7000)), cats / "huge.png")
    save(photo(1000), png)
    data = bytearray(png.read_bytes())
    data[len(data) // 2] ^= 255
    png.write_bytes(data)
    shutil.copy(cats / "1.jpg", cats / "named.png")
    (cats / "1.jpg").unlink()
    checked = check(photos)
    for kind, names in planted.items():
        assert {Path(path).name for path in paths(checked, kind)} == names
    assert paths(checked, "corrupt") == {"train/dog/corrupt.png"}
    assert paths(checked, "extension") == {"train/cat/named.png"}
    assert checked.of_kind("extension")[0].advice == "rename it to .jpg"
    assert len(checked.unreadable) == 6
    assert checked.images == 60


@pytest.mark.parametrize("exact_only", [False, True])
def test_equal_pixels_are_found_whatever_the_file(photos: Path, exact_only: bool) -> None:
    train, test = photos / "train", photos / "test"
    shutil.copy(train / "cat/0.jpg", train / "cat/copy.jpg")
    with Image.open(train / "cat/1.jpg") as picture:
        save(picture, train / "cat/copy.png")  # the pixels of a JPEG in another format
        save(picture, train / "cat/again.png", compress_level=1)
    shutil.copy(train / "dog/2.jpg", test / "dog/leak.jpg")
    shutil.copy(train / "dog/3.jpg", train / "cat/other.jpg")
    checked = check(photos, exact_only=exact_only)
    groups = {frozenset((*finding.paths, *finding.beside)) for finding in checked.of_kind("exact-duplicate")}
    assert groups == {
        frozenset({"train/cat/0.jpg", "train/cat/copy.jpg"}),
        frozenset({"train/cat/1.jpg", "train/cat/copy.png", "train/cat/again.png"}),
    }
    assert paths(checked, "leakage") == {"train/dog/2.jpg"}
    assert checked.of_kind("leakage")[0].beside == ("test/dog/leak.jpg",)
    assert paths(checked, "two-labels") == {"train/dog/3.jpg", "train/cat/other.jpg"}
    assert '"cat" and "dog"' in checked.of_kind("two-labels")[0].evidence
    assert checked.of_kind("near-duplicate") == ()


def test_an_image_that_differs_in_one_pixel_is_no_exact_duplicate(photos: Path) -> None:
    pixels = np.array(photo(500))
    save(Image.fromarray(pixels), photos / "train/cat/a.png")
    pixels[57, 33, 1] ^= 1  # no pixel of the sample
    save(Image.fromarray(pixels), photos / "train/cat/b.png")
    checked = check(photos)
    assert checked.of_kind("exact-duplicate") == ()
    assert paths(checked, "near-duplicate") | {"train/cat/a.png"} >= {"train/cat/a.png", "train/cat/b.png"}


def test_near_duplicates_across_splits_and_labels(photos: Path) -> None:
    with Image.open(photos / "train/cat/4.jpg") as picture:
        save(NEAR["mirrored"](picture), photos / "val/cat/leak.jpg", quality=90)
    with Image.open(photos / "train/cat/5.jpg") as picture:
        save(NEAR["centre crop to 80 %"](picture), photos / "train/dog/crop.jpg", quality=90)
    checked = check(photos)
    assert paths(checked, "leakage") == {"train/cat/4.jpg"}
    assert "mirrored" in checked.of_kind("leakage")[0].evidence
    assert paths(checked, "two-labels") == {"train/cat/5.jpg", "train/dog/crop.jpg"}
    assert "cropped to" in checked.of_kind("two-labels")[0].evidence
    assert {finding.kind for finding in checked.findings} == {"leakage", "two-labels"}


def test_blank_dark_and_blurred_images(photos: Path) -> None:
    cats = photos / "train" / "cat"
    save(Image.new("RGB", (160, 120), "white"), cats / "white.png")
    save(Image.new("RGB", (160, 120), "black"), cats / "black.jpg")
    save(darkened(photo(900)), cats / "dark.jpg")
    save(blurred(photo(901)), cats / "blurred.jpg")
    checked = check(photos)
    assert paths(checked, "blank") == {"train/cat/white.png", "train/cat/black.jpg"}
    assert paths(checked, "dark") == {"train/cat/dark.jpg"}
    assert paths(checked, "blurred") == {"train/cat/blurred.jpg"}


def test_sizes_and_classes_that_stand_out(photos: Path) -> None:
    save(photo(902, size=(30, 24)), photos / "train/cat/tiny.jpg")
    save(photo(903, size=(700, 100)), photos / "train/cat/long.jpg")
    save(photo(904), photos / "train/bird/0.jpg")
    checked = check(photos)
    assert paths(checked, "small") == {"train/cat/tiny.jpg"}
    assert paths(checked, "aspect-ratio") == {"train/cat/long.jpg"}
    assert [finding.evidence for finding in checked.of_kind("small-class")] == [
        'class "bird": 1 training image; no image in val and test, so it is not scored there'
    ]
    assert '"cat" has 22 training images, "bird" 1: 22 to 1' in checked.of_kind("imbalance")[0].evidence


def test_labels_of_which_an_image_may_have_several(image_folder: ImageFolder) -> None:
    root = image_folder({"photos": 4})
    shutil.copy(root / "photos/0.jpg", root / "photos/4.jpg")
    shutil.copy(root / "photos/0.jpg", root / "photos/5.jpg")
    lines = [
        "path,labels,split",
        *(f"photos/{i}.jpg,{'a;b' if i % 2 else 'b;a'},train" for i in range(5)),
        "photos/5.jpg,b,train",
    ]
    (root / "labels.csv").write_text("\n".join(lines))
    checked = check(root, val_fraction=0)
    assert checked.labels == {1: 1, 2: 5}
    assert paths(checked, "two-labels") == {"photos/0.jpg", "photos/4.jpg", "photos/5.jpg"}
    assert checked.of_kind("exact-duplicate")[0].paths == ("photos/4.jpg",)
    assert "leakage: there is one split, train" in checked.left_out


def test_a_file_that_a_table_names_and_is_not_there(image_folder: ImageFolder) -> None:
    root = image_folder({"photos": 3})
    (root / "labels.csv").write_text("path,labels,split\nphotos/0.jpg,a,train\nphotos/1.jpg,a,train\nphotos/9.jpg,a,train\n")
    assert paths(check(root, val_fraction=0), "missing") == {"photos/9.jpg"}


def test_a_folder_without_classes(image_folder: ImageFolder) -> None:
    root = image_folder({"album": 12})
    shutil.copy(root / "album/0.jpg", root / "copy.jpg")
    checked = check(root, val_fraction=0)
    assert checked.counts == {"train": {}}
    assert checked.of_kind("exact-duplicate")[0].beside == ("album/0.jpg",)
    assert "classes and labels: the images have none" in checked.left_out


def test_a_folder_where_nothing_is_readable(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 8, "dog": 8}})
    for file in root.glob("*/*/*"):
        file.write_bytes(b"gone")
    checked = check(root, val_fraction=0.0)
    assert (checked.images, len(checked.unreadable)) == (0, 16)
    assert json.dumps(checked.to_dict(), allow_nan=False)


def test_a_named_set(idx_set: Path) -> None:
    train, test = (idx_set / f"{part}-images-idx3-ubyte" for part in ("train", "t10k"))
    data = bytearray(test.read_bytes())
    data[16 : 16 + 784] = train.read_bytes()[16 : 16 + 784]
    test.write_bytes(data)
    checked = check("mnist", val_fraction=0.0)
    assert checked.images == 80
    assert (checked.sizes, checked.modes, checked.unreadable) == ({(28, 28): 80}, {"L": 80}, ())
    assert paths(checked, "leakage") == {"mnist/train/0"}
    assert any(line.startswith("corrupt files") for line in checked.left_out)


def test_images_of_more_than_8_bits(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        for number in range(4):
            values = draw.integers(1000, 1100, (40, 40), dtype=np.uint16)
            save(Image.fromarray(values), tmp_path / name / f"{number}.png")
    values[3, 3] += 1
    save(Image.fromarray(values), tmp_path / "b/other.png")
    shutil.copy(tmp_path / "a/0.png", tmp_path / "b/copy.png")
    checked = check(tmp_path, val_fraction=0.0)
    assert checked.values["train"].type == "uint16"
    (finding,) = checked.of_kind("two-labels")
    assert set(finding.paths) == {"a/0.png", "b/copy.png"}
    assert checked.of_kind("dark") == ()


def test_no_data_set() -> None:
    with pytest.raises(ValueError, match="neither a folder nor one of"):
        check("nothing-of-the-kind")


def test_json_and_the_fix_list(photos: Path, tmp_path: Path) -> None:
    (photos / "train/cat/broken.jpg").write_bytes(b"no image")
    shutil.copy(photos / "train/cat/0.jpg", photos / "train/cat/copy.jpg")
    checked = check(photos)
    read = json.loads(json.dumps(checked.to_dict(), allow_nan=False))
    assert read["images"] == 61
    assert read["counts"]["train"]["dog"] == 20
    assert [finding["finding"] for finding in read["findings"]] == ["not-an-image", "exact-duplicate"]
    lines = checked.write_fix_list(tmp_path / "fix.csv").read_text().splitlines()
    assert lines[0] == "file,finding,evidence,suggestion"
    assert lines[1].startswith("train/cat/broken.jpg,not-an-image,")
    assert lines[2].startswith("train/cat/copy.jpg,exact-duplicate,") or lines[2].startswith("train/cat/0.jpg,exact-duplicate,")
    assert len(lines) == 3
    with pytest.raises(ValueError, match="can't be written"):
        checked.write_fix_list(tmp_path / "nowhere" / "fix.csv")
    with pytest.raises(ValueError, match="none of the findings"):
        checked.of_kind("nonsense")

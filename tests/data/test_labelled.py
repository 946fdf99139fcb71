from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cases import ImageFolder
from vitrail.data.augment import augment
from vitrail.data.batches import eval_batches, train_batches
from vitrail.data.dataset import stable_fraction
from vitrail.data.labelled import open_labelled, read_table
from vitrail.data.sources import open_source
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing

RGB = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
IN_FILES = DataConfig(memory_gb=0.0, workers=0)


def write(root: Path, text: str, *, encoding: str = "utf-8") -> Path:
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text(text, encoding=encoding)
    return root


@pytest.fixture
def beach(image_folder: ImageFolder) -> Path:
    """Six images with sea, sky or sand, one of them with nothing, in a folder of their own."""
    root = image_folder({"photos": 6}, name="beach")
    lines = ("0,sea;sky,train", "1,sky,train", "2,,train", "3,sand; sea ;sea,train", "4,sky,val", "5,sand;sky,test")
    return write(root, "path,labels,split\n" + "".join(f"photos/{line.replace(',', '.jpg,', 1)}\n" for line in lines))


def test_a_table_of_labels_is_a_source(beach: Path) -> None:
    source = open_source(str(beach))
    assert (source.name, source.classes, source.multi_label, source.channels) == ("beach", ("sand", "sea", "sky"), True, 3)
    assert source.splits == ("train", "val", "test")
    assert source.class_counts() == (1, 2, 2)
    assert source.train_images() == 4
    split = source.load("train", preprocessing=RGB, cfg=DataConfig())
    assert split.multi_label
    assert list(split.names) == [f"photos/{i}.jpg" for i in range(4)]
    expected = [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert split.targets(torch.arange(4)).tolist() == expected  # type: ignore[union-attr]
    assert split.targets(torch.tensor([3, 0])).tolist() == [expected[3], expected[0]]  # type: ignore[union-attr]
    assert split.labels.tolist() == [-1] * 4


@pytest.mark.parametrize(
    "cfg", [DataConfig(), IN_FILES, DataConfig(memory_gb=0.0, workers=1)], ids=["memory", "files", "worker"]
)
def test_batches_carry_the_labels_of_the_images_that_are_left(beach: Path, cfg: DataConfig) -> None:
    source, crops = open_source(str(beach)), AugmentConfig(repeats=2)
    split = source.load("train", preprocessing=RGB, cfg=cfg, augment=crops)
    assert split.multi_hot is not None
    if cfg.memory_gb == 0:
        (beach / "photos/1.jpg").unlink()
    for epoch, raw in islice(train_batches(split, batch_size=4, seed=0, augment=crops), 4):
        assert raw.targets is not None
        assert torch.equal(raw.targets, split.multi_hot[raw.indexes].float())
        batch = augment(raw, cfg=crops, preprocessing=RGB, num_classes=3, seed=0, epoch=epoch, label_smoothing=0.1)
        assert torch.equal(batch.targets, raw.targets), "what is there or not is not smoothed"
    view = source.load("test", preprocessing=RGB, cfg=cfg)
    assert [batch.targets.tolist() for batch in eval_batches(view, batch_size=4)] == [[[1, 0, 1]]]  # type: ignore[union-attr]


@pytest.mark.parametrize("mixing", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_mixing_mixes_the_labels(beach: Path, mixing: dict[str, Any]) -> None:
    cfg = AugmentConfig(crop="none", flip=0.0, **mixing)
    split = open_source(str(beach)).load("train", preprocessing=RGB, cfg=DataConfig(), augment=cfg)
    _, raw = next(train_batches(split, batch_size=4, seed=1, augment=cfg))
    assert raw.targets is not None
    plain = augment(raw, cfg=AugmentConfig(crop="none", flip=0.0), preprocessing=RGB, num_classes=3, seed=1, epoch=0)
    batch = augment(raw, cfg=cfg, preprocessing=RGB, num_classes=3, seed=1, epoch=0)
    own, other = raw.targets, raw.targets.roll(1, 0)
    apart = plain.images.roll(1, 0) - plain.images
    share = 1 - ((batch.images - plain.images) * apart).sum((1, 2, 3)) / apart.square().sum((1, 2, 3))  # of the image itself
    if "mixup_alpha" in mixing:
        torch.testing.assert_close(batch.targets, own * share[:, None] + other * (1 - share[:, None]), atol=1e-4, rtol=0)
    assert ((batch.targets >= torch.minimum(own, other)) & (batch.targets <= torch.maximum(own, other))).all()
    assert not torch.equal(batch.targets, own)


def test_without_splits_the_sides_are_hashes(image_folder: ImageFolder) -> None:
    root = image_folder({"photos": 80})
    write(root, "PATH, Labels\n" + "".join(f"photos/{i}.jpg,{'ab'[i % 2]}\n" for i in range(80)), encoding="utf-8-sig")
    source = open_labelled(root, val_fraction=0.5)
    sides = {split: [file.path for file in files] for split, files in source.files.items()}
    assert all(stable_fraction(path) < 0.8 for path in sides["train"])
    assert all(0.8 <= stable_fraction(path) < 0.9 for path in sides["val"])
    assert sum(map(len, sides.values())) == 80


def test_validation_images_are_held_out_where_the_table_has_none(image_folder: ImageFolder) -> None:
    root = image_folder({"photos": 60})
    write(root, "split,labels,path\n" + "".join(f"{'test' if i < 5 else 'train'},a,photos/{i}.jpg\n" for i in range(60)))
    source = open_labelled(root, val_fraction=0.2)
    held_out = [file.path for file in source.files["val"]]
    assert held_out == [f"photos/{i}.jpg" for i in range(5, 60) if stable_fraction(f"photos/{i}.jpg") < 0.2]
    assert open_labelled(root, val_fraction=0.0).splits == ("train", "test")


def test_grey_images_and_files_that_are_missing(beach: Path) -> None:
    for file in beach.glob("photos/*.jpg"):
        Image.open(file).convert("L").save(file)
    assert open_labelled(beach, val_fraction=0.1).channels == 1
    (beach / "photos/0.jpg").unlink()
    source = open_labelled(beach, val_fraction=0.1)
    with pytest.raises(ValueError, match=r"1 of 4 files for train .* the file is not there"):
        source.load("train", preprocessing=RGB, cfg=DataConfig())
    split = source.load("train", preprocessing=RGB, cfg=DataConfig(max_bad=0.5))
    assert split.multi_hot is not None
    assert split.multi_hot.tolist() == [[False, False, True], [False, False, False], [True, True, False]]


def test_a_table_from_windows(tmp_path: Path) -> None:
    write(tmp_path, 'path,labels\r\na\\b.jpg,"red, dark;round"\r\n\r\n./c.jpg,\r\n', encoding="utf-8-sig")
    rows, _ = read_table(tmp_path / "labels.csv")
    assert [(row.line, row.path, row.labels) for row in rows] == [(2, "a/b.jpg", ("red, dark", "round")), (4, "c.jpg", ())]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,labels\n", r"labels.csv names no images; write one line an image"),
        ("path,labels\na.jpg,\n", "names no labels"),
        ("path,labels\na.jpg\n", r"line 2: there are fewer cells than in the header"),
        ("path,labels\na.jpg,x\na.jpg,y\n", r'line 3: a.jpg stands on line 2 too; keep one line an image, its labels with ";"'),
        ("path,labels\n../a.jpg,x\n", r'line 2: path "../a.jpg" does not lead to a file in the folder'),
        ("path,labels\n/a.jpg,x\n", r'path "/a.jpg" does not lead'),
        ("path,labels\n,x\n", r'path "" does not lead'),
        ("path,labels,split\na.jpg,x,tset\n", r'line 2: split "tset" is none of train, val, test'),
        ("path,labels,split\na.jpg,x,train\nb.jpg,x,\n", "line 3: there is no split, and other lines have one"),
        ("path,labels,split\na.jpg,x,\nb.jpg,x,train\n", "line 2: there is no split, and other lines have one"),
        ("path,labels,split\na.jpg,x,train\nb.jpg,x;y,test\n", 'label "y" is in test but not in train'),
        ("path,labels\na.jpg,x\udcff\n", r"can't be read .*; save it as CSV in UTF-8"),
        (
            "path,labels\na.jpg,sea,sky\n",
            r'line 2: there are more cells than in the header \("sky" has no column\); write the labels',
        ),
        ("path,labels\na.jpg,sea\n\nb.jpg,sea,\n", "line 4: there are more cells than in the header"),
        ("path,labels,split\na.jpg,sea,train,\n", "line 2: there are more cells"),
        ("path,labels,labels\na.jpg,sea,sky\n", 'two columns "labels"; keep one'),
        ("path,Path,labels\na.jpg,b.jpg,sky\n", 'two columns "path"; keep one'),
        ("path,labels,\na.jpg,sea,sky\n", "line 2: there is a cell in a column without a name"),
        ('path,labels\na.jpg,"sea\nb.jpg,sky\n', r"line 3, can't be read \(unexpected end of data\)"),
        ("path,labels\na\0.jpg,sea\n", "line 2: path .* does not lead to a file"),
        ("path;labels\na.jpg;sea\n", "has the columns path;labels; for several labels .* with commas between$"),
        ("path\tlabels\na.jpg\tsea\n", "with commas between$"),
        ("file;tags\na.jpg;x\n", r"has the columns file;tags; for several labels an image name two of them path and labels"),
        ("", r"has the columns none that can be read"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=says) as error:
        open_source(str(tmp_path))
    assert "\n" not in str(error.value)


def test_class_folders_with_some_other_table_are_class_folders(image_folder: ImageFolder) -> None:
    root = write(image_folder({"train": {"a": 2, "b": 2}}), "id,breed\n1,husky\n")
    source = open_source(str(root))
    assert not source.multi_label
    assert source.notes[0].startswith("not used: labels.csv, whose columns are id, breed; for several labels an image")
    write(root, "path;labels\n1.jpg;a\n")
    with pytest.raises(ValueError, match="has the columns path;labels"):  # class folders or not: a table of labels is meant
        open_source(str(root))


def test_splits_by_any_of_their_names(image_folder: ImageFolder) -> None:
    root = image_folder({"photos": 6})
    names = ["Training", "train_set", "valid", "dev", "Testing", "test"]
    write(root, "path,labels,split\n" + "".join(f"photos/{i}.jpg,a,{name}\n" for i, name in enumerate(names)))
    assert {split: len(files) for split, files in open_labelled(root, val_fraction=0).files.items()} == {
        "train": 2,
        "val": 2,
        "test": 2,
    }


def test_one_image_a_label(image_folder: ImageFolder) -> None:
    root = write(image_folder({"photos": 12}), "path,labels\n" + "".join(f"photos/{i}.jpg,label{i}\n" for i in range(12)))
    for fraction in (0.0, 0.9):
        assert open_labelled(root, val_fraction=fraction).class_counts() == (1,) * 12


def test_names_in_two_spellings(image_folder: ImageFolder) -> None:
    """The table from one system, the files from another; and one label spelled in both ways."""
    root = image_folder({"cafe\u0301": 2})
    write(root, "path,labels\ncaf\u00e9/0.jpg,th\u00e9\ncaf\u00e9/1.jpg,the\u0301\n")
    source = open_labelled(root, val_fraction=0)
    assert source.classes == ("th\u00e9",)
    assert sorted(file.path for files in source.files.values() for file in files) == ["cafe\u0301/0.jpg", "cafe\u0301/1.jpg"]
    assert len(source.load("train", preprocessing=RGB, cfg=DataConfig())) > 0


def test_a_label_without_a_readable_image_is_refused(beach: Path) -> None:
    source = open_labelled(beach, val_fraction=0.0)
    rows = {file.label for file in source.files["train"] if source.multi_hot[file.label, 0]}
    for file in source.files["train"]:
        if file.label in rows:
            (beach / file.path).write_bytes(b"gone")
    with pytest.raises(ValueError, match=f'label "{source.classes[0]}" has no readable training image; add some, or remove it'):
        source.load("train", preprocessing=RGB, cfg=DataConfig(max_bad=1.0))


def test_columns_that_are_not_used_are_said(image_folder: ImageFolder) -> None:
    root = write(image_folder({"photos": 1}), "path,labels,camera,\nphotos/0.jpg,a,mine,\n")
    assert open_labelled(root, val_fraction=0).notes == ("not used: the columns camera of labels.csv",)


def test_no_sampler_by_class(beach: Path) -> None:
    with pytest.raises(ValueError, match=r'data.balance "sampler" draws by class, and these images have any number of labels'):
        open_source(str(beach)).load("train", preprocessing=RGB, cfg=DataConfig(balance="sampler"))


def test_one_class_an_image_has_no_targets(image_folder: ImageFolder) -> None:
    split = open_source(str(image_folder({"train": {"a": 2, "b": 2}}))).load("train", preprocessing=RGB, cfg=DataConfig())
    assert not split.multi_label
    assert split.targets(torch.arange(2)) is None
    assert np.array_equal(split.labels.sort().values, np.sort(split.labels))

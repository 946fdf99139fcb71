from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.named import NAMED, cache_home, find, read_idx
from vitrail.data.sources import open_source
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing


def preprocessing(size: int = 28, channels: int = 1) -> Preprocessing:
    return Preprocessing(img_size=(size, size), in_channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)


def cifar(folder: Path, name: str) -> Path:
    """Five training images a file and five test images, in CIFAR's binary layout."""
    kind, rng = NAMED[name], np.random.default_rng(1)
    folder.mkdir(parents=True)
    for file in (f for files in kind.files.values() for f in files):
        records = rng.integers(0, 256, (5, kind.label_bytes + 3072), dtype=np.uint8)
        records[:, : kind.label_bytes] = np.arange(5)[:, None] + [7, 1][: kind.label_bytes][::-1]
        if kind.label_bytes == 1:
            records[:, 0] = np.arange(5)
        (folder / file).write_bytes(records.tobytes())
    return folder


def test_the_table_is_whole() -> None:
    assert set(NAMED) == {"fashion-sample", "fashion-mnist", "mnist", "cifar10", "cifar100"}
    for name, kind in NAMED.items():
        assert len(kind.mean) == len(kind.std) == kind.channels
        assert len(set(kind.classes)) == len(kind.classes) == (100 if name == "cifar100" else 10)
        assert all(len(file.sha256) == 64 and file.size > 0 for file in kind.published)
        assert all("/" not in part for part in kind.classes)
    assert list(NAMED["cifar100"].classes) == sorted(NAMED["cifar100"].classes)


def test_a_validation_image_never_changes_sides(idx_set: Path) -> None:
    source = open_source("mnist", val_fraction=0.25)
    assert source.splits == ("train", "val", "test")
    names = {name: set(source.load(name, preprocessing=preprocessing(), cfg=DataConfig()).names) for name in source.splits}
    assert len(names["train"]) + len(names["val"]) == 60
    assert names["val"]
    assert not names["train"] & names["val"]
    fewer = open_source("mnist", val_fraction=0.1).load("val", preprocessing=preprocessing(), cfg=DataConfig())
    assert set(fewer.names) <= names["val"]
    assert open_source("mnist", val_fraction=0.0).splits == ("train", "test")
    assert next(iter(names["test"])).startswith("mnist/test/")


def test_labels_stay_with_their_images(idx_set: Path) -> None:
    images, labels = (read_idx(idx_set / f"train-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
    split = open_source("mnist").load("train", preprocessing=preprocessing(), cfg=DataConfig())
    batch, failures = split.read(torch.tensor([5, 0]))
    for image, label, index in zip(batch.images, batch.labels, batch.indexes, strict=True):
        position = int(split.names[int(index)].rsplit("/", 1)[1])
        assert torch.equal(image[0], torch.from_numpy(images[position]))
        assert label == labels[position]
    assert failures == ()


def test_gzipped_files_are_read_too(idx_set: Path) -> None:
    for file in list(idx_set.iterdir()):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert len(open_source("mnist").load("test", preprocessing=preprocessing(), cfg=DataConfig())) == 20


@pytest.mark.parametrize(("name", "label"), [("cifar10", [0, 1, 2, 3, 4]), ("cifar100", [7, 8, 9, 10, 11])])
def test_cifar_s_binary_files(name: str, label: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    kind = NAMED[name]
    folder = cifar(tmp_path / name / kind.subfolder, name)
    split = open_source(name).load("test", preprocessing=preprocessing(32, 3), cfg=DataConfig())
    assert split.labels.tolist() == label
    record = np.frombuffer((folder / kind.files["test"][0]).read_bytes(), np.uint8)[kind.label_bytes : kind.label_bytes + 3072]
    assert torch.equal(split.read(torch.tensor([0]))[0].images[0], torch.from_numpy(record.reshape(3, 32, 32).copy()))


def test_cifar_s_archive_in_the_data_folder_is_unpacked_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar(tmp_path / "made" / "cifar-10-batches-bin", "cifar10")
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    with tarfile.open(tmp_path / "data" / "cifar10" / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-bin")
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    assert find("cifar10") == tmp_path / "cache" / "data" / "cifar10"
    assert len(open_source("cifar10").load("test", preprocessing=preprocessing(32, 3), cfg=DataConfig())) == 5


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_CACHE", "/ours")
    assert cache_home() == Path("/ours/data")
    assert cache_home("features") == Path("/ours/features")
    monkeypatch.delenv("VITRAIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/everybodys")
    assert cache_home() == Path("/everybodys/vitrail/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/nowhere/me")
    assert cache_home() == Path("/nowhere/me/.cache/vitrail/data")


def test_channels_are_converted_as_pillow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idx_set: Path) -> None:
    grey = open_source("mnist").load("test", preprocessing=preprocessing(), cfg=DataConfig()).read(torch.arange(3))[0].images
    colour = open_source("mnist").load("test", preprocessing=preprocessing(channels=3), cfg=DataConfig())
    assert torch.equal(colour.read(torch.arange(3))[0].images, grey.expand(-1, 3, -1, -1))
    cifar(idx_set.parent / "cifar10", "cifar10")
    rgb = (
        open_source("cifar10")
        .load("test", preprocessing=preprocessing(32, 3), cfg=DataConfig())
        .read(torch.arange(5))[0]
        .images
    )
    luma = (
        open_source("cifar10").load("test", preprocessing=preprocessing(32), cfg=DataConfig()).read(torch.arange(5))[0].images
    )
    for colours, one in zip(rgb, luma, strict=True):
        expected = np.asarray(Image.fromarray(colours.permute(1, 2, 0).numpy()).convert("L"))
        assert np.array_equal(one[0].numpy(), expected)
    with pytest.raises(ValueError, match="in_channels 4 does not fit mnist, whose images have 1; use 1 or 3"):
        open_source("mnist").load("test", preprocessing=preprocessing(channels=4), cfg=DataConfig())


@pytest.mark.parametrize("memory_gb", [2.0, 0.0])
def test_another_size_is_resized_whether_or_not_it_fits_in_memory(idx_set: Path, memory_gb: float) -> None:
    cfg = DataConfig(memory_gb=memory_gb)
    small = open_source("mnist").load("test", preprocessing=preprocessing(), cfg=cfg).read(torch.arange(2))[0].images
    for augment in (None, AugmentConfig(crop="pad"), AugmentConfig(crop="none")):
        split = open_source("mnist").load("test", preprocessing=preprocessing(40), cfg=cfg, augment=augment)
        batch, _ = split.read(torch.arange(2))
        assert batch.images.shape == (2, 1, 40, 40)
        assert batch.sizes.tolist() == split.sizes[:2].tolist() == [[40, 40]] * 2
        expected = np.asarray(Image.fromarray(small[1, 0].numpy()).resize((40, 40), Image.Resampling.BICUBIC))
        assert np.array_equal(batch.images[1, 0].numpy(), expected)
    whole = open_source("mnist").load("test", preprocessing=preprocessing(40), cfg=cfg, augment=AugmentConfig(crop="resized"))
    assert whole.read(torch.arange(2))[0].images.shape == (2, 1, 28, 28)


@pytest.mark.parametrize("damage", ["cut", "magic", "empty", "gzip"])
def test_a_damaged_file_is_named(idx_set: Path, damage: str) -> None:
    file = idx_set / "t10k-images-idx3-ubyte"
    data = file.read_bytes()
    if damage == "gzip":
        file.unlink()
        file = file.with_name(f"{file.name}.gz")
        data = gzip.compress(data)[:-100]
    file.write_bytes({"cut": data[:-1], "magic": b"\1" + data[1:], "empty": b"", "gzip": data}[damage])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.*get it anew") as error:
        open_source("mnist").load("test", preprocessing=preprocessing(), cfg=DataConfig())
    assert "\n" not in str(error.value)


def test_labels_of_another_set_are_refused(idx_set: Path) -> None:
    file = idx_set / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(ValueError, match="get it anew"):
        open_source("mnist").load("test", preprocessing=preprocessing(), cfg=DataConfig())


@pytest.mark.full
@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_the_full_set_is_found_where_debian_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITRAIL_DATA", raising=False)
    source = open_source("fashion-mnist", val_fraction=0.0)
    splits = [source.load(name, preprocessing=preprocessing(), cfg=DataConfig()) for name in ("train", "test")]
    assert [len(split) for split in splits] == [60_000, 10_000]
    pixels = splits[0].read(torch.arange(60_000))[0].images.float() / 255
    assert source.mean == pytest.approx([pixels.mean().item()], abs=1e-4)
    assert source.std == pytest.approx([pixels.std().item()], abs=1e-4)

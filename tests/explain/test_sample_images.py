"""The images that stand for a data set are evenly spaced over the split that a model was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.augment import normalise
from vitrail.data.dataset import Skipped
from vitrail.data.sources import open_source
from vitrail.explain import sample_images
from vitrail.settings import DataConfig, Preprocessing

SMALL = Preprocessing(img_size=(8, 8), in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 5), ("test", 4)):
        for kind in ("cat", "dog"):
            for index in range(count):
                path = tmp_path / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_evenly_spaced_images_of_the_test_split(photos: Path) -> None:
    source = open_source(str(photos))
    sample = sample_images(source, preprocessing=SMALL, limit=3)
    split = source.load("test", preprocessing=SMALL, cfg=DataConfig())
    assert sample.split == "test"
    assert sample.indexes.tolist() == [0, 4, 7]
    raw, _ = split.read(sample.indexes)
    assert torch.equal(sample.raw.images, raw.images)
    assert torch.equal(sample.images, normalise(raw.images, SMALL))
    assert sample.raw.labels.tolist() == raw.labels.tolist()
    assert sample.unreadable == ()
    assert len(sample_images(source, preprocessing=SMALL).images) == 8, "all, where there are no more"


def test_a_data_set_without_a_test_split(photos: Path) -> None:
    (photos / "test").rename(photos.parent / "elsewhere")
    assert sample_images(open_source(str(photos)), preprocessing=SMALL, limit=2).split == "val"


def test_a_file_that_cannot_be_read_is_left_out_and_reported(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(photos))
    split = source.load("test", preprocessing=SMALL, cfg=DataConfig())
    read, lost = split.read, (Skipped("test/cat/0.png", "truncated"),)
    monkeypatch.setattr(split, "read", lambda indexes: (read(indexes[1:])[0], lost))
    monkeypatch.setattr(type(source), "load", lambda *taken, **options: split)
    sample = sample_images(source, preprocessing=SMALL, limit=8)
    assert len(sample.images) == len(sample.raw.labels) == 7
    assert len(sample.indexes) == 8
    assert sample.unreadable == lost


def test_no_image_is_no_sample(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"^limit 0 must be at least 1$"):
        sample_images(open_source(str(photos)), preprocessing=SMALL, limit=0)

from __future__ import annotations

import os

import torch
from PIL import Image

from cases import ImageFolder
from vitrail.data.files import FileSplit
from vitrail.data.folder import open_folder
from vitrail.data.memory import FixedSplit, RaggedSplit
from vitrail.settings import DataConfig, Preprocessing

RGB = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_pixels_and_their_order_count_in_memory() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)

    def of(images: torch.Tensor) -> str:
        return FixedSplit(images, labels=torch.zeros(3, dtype=torch.long), names=["a", "b", "c"]).fingerprint()

    assert of(images) == of(images.clone())
    assert len({of(images), of(images.flip(0)), of(images + 1)}) == 3
    assert of(images.transpose(2, 3)) == of(images.transpose(2, 3).contiguous())


def test_names_sizes_and_times_count_on_disk(image_folder: ImageFolder) -> None:
    photos = image_folder({"train": {"cat": 3, "dog": 3}})

    def of() -> str:
        split = open_folder(photos, val_fraction=0).load("train", preprocessing=RGB, cfg=DataConfig(memory_gb=0, workers=0))
        assert isinstance(split, FileSplit)
        return split.fingerprint()

    seen = [of()]
    assert of() == seen[0]
    path = photos / "train" / "cat" / "1.jpg"
    Image.new("RGB", (20, 20)).save(path)
    seen.append(of())
    os.utime(path, ns=(1, 1))
    seen.append(of())
    path.rename(path.with_name("x.jpg"))
    seen.append(of())
    assert len(set(seen)) == 4


def test_photographs_of_many_sizes_have_none() -> None:
    images = [torch.zeros(3, 4, 5, dtype=torch.uint8)]
    assert RaggedSplit(images, labels=torch.zeros(1, dtype=torch.long), names=["a"]).fingerprint() is None

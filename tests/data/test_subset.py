"""Some images of a split: their pixels, labels and names, and files that fail."""

from __future__ import annotations

import torch

from conftest import ImageFolder
from vitrail.data.batches import eval_batches
from vitrail.data.sources import open_source
from vitrail.data.subset import Subset
from vitrail.settings import DataConfig, Preprocessing

VIEW = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_images_are_those_of_the_whole_split(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 3, "dog": 4}, "val": {"cat": 1, "dog": 1}})
    whole = open_source(str(root)).load("train", preprocessing=VIEW, cfg=DataConfig(path=str(root)))
    positions = torch.tensor([6, 0, 3])
    some = Subset(whole, positions)
    assert len(some) == 3
    assert list(some.names) == [whole.names[i] for i in positions.tolist()]
    (batch,) = eval_batches(some, batch_size=8)
    expected, _ = whole.read(positions)
    assert torch.equal(batch.indexes, torch.arange(3))
    assert torch.equal(batch.images, expected.images)
    assert torch.equal(batch.labels, some.labels)


def test_a_lost_file_is_left_out_and_named(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 3, "dog": 4}, "val": {"cat": 1, "dog": 1}})
    cfg = DataConfig(path=str(root), memory_gb=0, workers=0)
    whole = open_source(str(root)).load("train", preprocessing=VIEW, cfg=cfg)
    some = Subset(whole, torch.tensor([5, 2, 1]))
    (root / "train" / "cat" / "2.jpg").unlink()
    (batch,) = eval_batches(some, batch_size=8)
    assert batch.indexes.tolist() == [0, 2]
    assert [item.path for item in some.skipped] == [some.names[1]]

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.config import AugmentConfig, DataConfig, Preprocessing
from vitrail.data.batch import RawBatch
from vitrail.data.batches import class_weights, eval_batches, steps_per_epoch, train_batches
from vitrail.data.dataset import Split
from vitrail.data.folder import open_folder
from vitrail.data.memory import FixedSplit

ImageFolder = Callable[..., Path]
PAD = AugmentConfig(crop="pad")
RGB = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def numbered(count: int) -> FixedSplit:
    """Images that show their own position."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return FixedSplit(images, labels=torch.arange(count) % 3, names=[f"set/{i}" for i in range(count)])


def same(one: RawBatch, two: RawBatch) -> bool:
    return all(torch.equal(getattr(one, field), getattr(two, field)) for field in RawBatch.__dataclass_fields__)


def test_every_epoch_has_its_own_order_and_drops_what_is_left_over() -> None:
    batches = list(islice(train_batches(numbered(23), batch_size=5, seed=1, augment=PAD), 12))
    assert [epoch for epoch, _ in batches] == [0] * 4 + [1] * 4 + [2] * 4
    orders = [torch.cat([batch.indexes for _, batch in batches[i : i + 4]]) for i in (0, 4, 8)]
    assert all(len(order.unique()) == 20 for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert len(torch.cat(orders).unique()) == 23  # other images are dropped each time
    for _, batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indexes)
        assert torch.equal(batch.labels, batch.indexes % 3)
        assert batch.sizes.tolist() == [[8, 8]] * 5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 100), st.integers(0, 2**31))
def test_starting_at_a_step_gives_what_comes_from_there(count: int, batch_size: int, start: int, seed: int) -> None:
    split = numbered(count)
    whole = islice(train_batches(split, batch_size=batch_size, seed=seed, augment=PAD), start, start + 3)
    later = islice(train_batches(split, batch_size=batch_size, seed=seed, augment=PAD, start_step=start), 3)
    for (epoch, batch), (same_epoch, same_batch) in zip(whole, later, strict=True):
        assert epoch == same_epoch
        assert same(batch, same_batch)
        assert len(batch) == min(count, batch_size)


def test_a_set_smaller_than_a_batch_is_one() -> None:
    assert steps_per_epoch(numbered(7), batch_size=64) == 1
    for epoch, batch in islice(train_batches(numbered(7), batch_size=64, seed=0, augment=PAD), 3):
        assert sorted(batch.indexes.tolist()) == list(range(7))
        assert epoch < 3


def test_seeds_differ_and_crops_are_drawn() -> None:
    one, two = (next(train_batches(numbered(50), batch_size=50, seed=seed, augment=PAD))[1] for seed in (0, 1))
    assert not torch.equal(one.indexes, two.indexes)
    assert len(one.boxes.unique(dim=0)) > 10
    plain = next(train_batches(numbered(50), batch_size=50, seed=0, augment=AugmentConfig(crop="none")))[1]
    assert plain.boxes.unique(dim=0).tolist() == [[0, 0, 8, 8]]


def test_a_crop_belongs_to_its_image_whatever_the_batch() -> None:
    def boxes(batch_size: int) -> torch.Tensor:
        batches = islice(train_batches(numbered(24), batch_size=batch_size, seed=3, augment=PAD), 24 // batch_size)
        joined = [(batch.indexes, batch.boxes) for _, batch in batches]
        order = torch.cat([indexes for indexes, _ in joined]).argsort()
        return torch.cat([box for _, box in joined])[order]

    assert torch.equal(boxes(24), boxes(8))


def test_evaluation_reads_every_image_once_and_in_order() -> None:
    batches = list(eval_batches(numbered(23), batch_size=10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert torch.cat([batch.indexes for batch in batches]).tolist() == list(range(23))
    assert all(batch.boxes.unique(dim=0).tolist() == [[0, 0, 8, 8]] for batch in batches)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_weighed_classes_all_count_the_same(labels: list[int]) -> None:
    weights = class_weights(torch.tensor(labels), 6)
    for k in range(6):
        total = labels.count(k) * weights[k].item()
        assert total == pytest.approx(len(labels) / 6 if k in labels else 0.0)
    assert class_weights(torch.tensor([0, 0, 0, 1]), 2).tolist() == pytest.approx([4 / 6, 2.0])


def file_split(root: Path, workers: int, augment: AugmentConfig | None = None) -> Split:
    cfg = DataConfig(memory_gb=0.0, workers=workers)
    return open_folder(root, val_fraction=0.0).load("train", preprocessing=RGB, cfg=cfg, augment=augment)


def test_loader_processes_give_the_same_batches_as_none(image_folder: ImageFolder) -> None:
    root, augment = image_folder({"train": {"a": 9, "b": 8}}), AugmentConfig()
    alone, helped = (file_split(root, workers, augment) for workers in (0, 2))
    one, two = (list(islice(train_batches(split, batch_size=4, seed=5, augment=augment), 6)) for split in (alone, helped))
    for (epoch, batch), (same_epoch, same_batch) in zip(one, two, strict=True):
        assert epoch == same_epoch
        assert same(batch, same_batch)
    for batch, same_batch in zip(eval_batches(alone, batch_size=5), eval_batches(helped, batch_size=5), strict=True):
        assert same(batch, same_batch)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_during_the_run_ends_nothing(image_folder: ImageFolder, workers: int) -> None:
    root, augment = image_folder({"train": {"a": 4, "b": 4}}), AugmentConfig()
    split = file_split(root, workers, augment)
    (root / "train/a/2.jpg").unlink()
    batches = list(islice(train_batches(split, batch_size=8, seed=0, augment=augment), 2))
    assert [len(batch) for _, batch in batches] == [7, 7]
    assert [file.path for file in split.skipped] == ["train/a/2.jpg"]
    assert split.skipped[0].reason == "the file is not there"
    for file in root.glob("train/*/*.jpg"):
        file.unlink()
    with pytest.raises(ValueError, match="none of the 8 images can be read any more"):
        list(eval_batches(split, batch_size=3))
    assert len(split.skipped) == 8
    with pytest.raises(ValueError, match="none of the 8 images can be read any more"):
        next(train_batches(split, batch_size=3, seed=0, augment=augment))


def test_training_goes_on_when_whole_batches_are_gone(image_folder: ImageFolder) -> None:
    root, augment = image_folder({"train": {"a": 3, "b": 3}}), AugmentConfig()
    split = file_split(root, 0, augment)
    for i in range(3):
        (root / f"train/a/{i}.jpg").unlink()
    batches = list(islice(train_batches(split, batch_size=1, seed=0, augment=augment), 6))
    assert all(len(batch) == 1 and batch.labels.item() == 1 for _, batch in batches)

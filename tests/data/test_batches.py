from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.reduction
import os
import pickle
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import ImageFolder
from vitrail.data.augment import augment, crop_boxes
from vitrail.data.batch import RawBatch
from vitrail.data.batches import Job, LoaderLost, class_weights, eval_batches, steps_per_epoch, train_batches
from vitrail.data.dataset import Split
from vitrail.data.draws import Draws
from vitrail.data.folder import open_folder
from vitrail.data.memory import FixedSplit
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing

PAD = AugmentConfig(crop="pad")
RGB = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def numbered(count: int) -> FixedSplit:
    """Images that show their own position."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return FixedSplit(images, labels=torch.arange(count) % 3, names=[f"set/{i}" for i in range(count)])


def same(one: RawBatch, two: RawBatch) -> bool:
    pairs = [(getattr(one, field), getattr(two, field)) for field in RawBatch.__dataclass_fields__]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


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


@settings(max_examples=12, deadline=None)
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


@pytest.mark.parametrize(("crop", "expected"), [("pad", "ad4adf078efd9619"), ("none", "24e394266796f136")])
def test_without_repeats_and_balance_batches_are_what_they_were_before_there_were_any(crop: Any, expected: str) -> None:
    """The hash was taken of the code before: a run of long ago can still be made again."""
    cfg, digest = AugmentConfig(crop=crop), hashlib.blake2b(digest_size=8)
    grey = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.5,))
    for epoch, raw in islice(train_batches(numbered(23), batch_size=5, seed=7, augment=cfg), 10):
        seen = [raw.images, raw.sizes, raw.boxes, raw.labels, raw.indexes]
        if crop == "pad":
            batch = augment(raw, cfg=cfg, preprocessing=grey, num_classes=3, seed=7, epoch=epoch, label_smoothing=0.1)
            seen += [batch.images, batch.targets, batch.labels, batch.indexes]
        draws = Draws(seed=7, epoch=epoch, indexes=raw.indexes)
        for tensor in (*seen, draws.uniform("flip", 3), draws.integers("crop_top", high=1000, n=2)):
            digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == expected


REPEATED = st.tuples(st.integers(1, 40), st.integers(1, 50), st.integers(1, 5), st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(REPEATED, st.booleans())
def test_each_image_of_a_batch_comes_as_often_as_asked(given: tuple[int, int, int, int], balanced: bool) -> None:
    count, batch_size, repeats, seed = given
    split, cfg = numbered(count), AugmentConfig(crop="pad", repeats=repeats)
    steps = steps_per_epoch(split, batch_size=batch_size)
    assert steps == max(1, count // batch_size), "an epoch has as many steps as without"
    batches = train_batches(split, batch_size=batch_size, seed=seed, augment=cfg, balanced=balanced)
    for at, (epoch, batch) in enumerate(islice(batches, 2 * steps)):
        assert epoch == at // steps
        different = min(count, -(-batch_size // repeats))
        assert len(batch) == min(batch_size, different * repeats)
        assert batch.indexes.tolist() == [int(batch.indexes[i % different]) for i in range(len(batch))]
        counts = batch.indexes.unique(return_counts=True)[1]
        if not balanced:  # else a rare class may have to come twice
            assert len(counts) == different
            assert counts.max() - counts.min() <= 1
            assert 0 <= different * repeats - len(batch) < repeats, "what the batch has no room for is less than one image"
            assert counts.max() == repeats or batch_size < repeats**2


@settings(max_examples=60, deadline=None)
@given(REPEATED, st.booleans())
def test_no_two_turns_of_an_epoch_are_the_same(given: tuple[int, int, int, int], balanced: bool) -> None:
    count, batch_size, repeats, seed = given
    split, cfg = numbered(count), AugmentConfig(crop="pad", repeats=repeats)
    steps = steps_per_epoch(split, batch_size=batch_size)
    batches = list(islice(train_batches(split, batch_size=batch_size, seed=seed, augment=cfg, balanced=balanced), steps))
    turns: dict[int, list[int]] = {}
    for _, batch in batches:
        again = batch.turns if batch.turns is not None else torch.zeros_like(batch.indexes)
        for index, turn in zip(batch.indexes.tolist(), again.tolist(), strict=True):
            turns.setdefault(index, []).append(turn)
    assert all(sorted(each) == list(range(len(each))) for each in turns.values())
    assert (batches[0][1].turns is None) == (repeats == 1 and not balanced)


def test_turns_are_augmented_each_in_its_way_and_the_first_as_ever() -> None:
    split, cfg = numbered(12), AugmentConfig(crop="pad", repeats=4)
    _, batch = next(train_batches(split, batch_size=12, seed=3, augment=cfg))
    grey = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.5,))
    noisy = AugmentConfig(crop="pad", repeats=4, flip=0.0, erase_prob=1.0)
    images = augment(batch, cfg=noisy, preprocessing=grey, num_classes=3, seed=3, epoch=0).images
    for index in batch.indexes.unique():
        mine = batch.indexes == index
        assert int(mine.sum()) == 4
        assert len(batch.boxes[mine].unique(dim=0)) > 1
        assert len(images[mine].flatten(1).unique(dim=0)) == 4
    first = batch.turns == 0
    alone = Draws(seed=3, epoch=0, indexes=batch.indexes[first])
    assert torch.equal(batch.boxes[first], crop_boxes(batch.sizes[first], alone, cfg))


@settings(max_examples=40, deadline=None)
@given(REPEATED)
def test_epochs_of_repeated_images_see_one_part_after_the_other(given: tuple[int, int, int, int]) -> None:
    count, batch_size, repeats, seed = given
    split, cfg = numbered(count), AugmentConfig(crop="pad", repeats=repeats)
    steps = steps_per_epoch(split, batch_size=batch_size)
    part = steps * min(count, -(-batch_size // repeats))
    batches = train_batches(split, batch_size=batch_size, seed=seed, augment=cfg)
    seen = torch.cat(
        [
            batch.indexes[batch.turns == 0] if repeats > 1 else batch.indexes
            for _, batch in islice(batches, steps * (count // part))
        ]
    )
    assert len(seen) == len(seen.unique()) > count - part, "nothing twice before all but less than a part was there"


def skewed(counts: list[int]) -> FixedSplit:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return FixedSplit(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels=labels, names=["x"] * len(labels))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), st.integers(1, 20), st.integers(1, 4), st.integers(0, 99)
)
def test_balanced_classes_come_equally_often_and_so_do_their_images(
    counts: list[int], batch_size: int, repeats: int, seed: int
) -> None:
    split, cfg = skewed(counts), AugmentConfig(crop="pad", repeats=repeats)
    steps = steps_per_epoch(split, batch_size=batch_size)
    batches = list(islice(train_batches(split, batch_size=batch_size, seed=seed, augment=cfg, balanced=True), 4 * steps))
    different = min(len(split), -(-batch_size // repeats))
    for epochs in range(1, 5):
        drawn = torch.cat([batch.indexes[:different] for _, batch in batches[: epochs * steps]])
        last = torch.cat([batch.indexes[:different] for _, batch in batches[(epochs - 1) * steps : epochs * steps]])
        for some in (drawn, last):
            of_class = torch.bincount(split.labels[some], minlength=len(counts))[torch.tensor(counts) > 0]
            assert of_class.max() - of_class.min() <= 1
        times = torch.bincount(drawn, minlength=len(split))
        for k in split.labels.unique():
            assert times[split.labels == k].max() - times[split.labels == k].min() <= 1, "no image is left out for long"


@settings(max_examples=30, deadline=None)
@given(REPEATED, st.integers(0, 100), st.booleans())
def test_repeated_and_balanced_batches_come_again_from_any_step(
    given: tuple[int, int, int, int], start: int, balanced: bool
) -> None:
    count, batch_size, repeats, seed = given
    split, cfg = numbered(count), AugmentConfig(crop="pad", repeats=repeats)

    def batches(start: int) -> Iterator[tuple[int, RawBatch]]:
        return train_batches(split, batch_size=batch_size, seed=seed, augment=cfg, start_step=start, balanced=balanced)

    for (epoch, batch), (same_epoch, same_batch) in zip(islice(batches(0), start, start + 3), batches(start), strict=False):
        assert epoch == same_epoch
        assert same(batch, same_batch)


def test_balanced_orders_differ_between_epochs_and_seeds() -> None:
    split = skewed([100, 5])

    def order(seed: int, epoch: int) -> list[int]:
        batches = train_batches(split, batch_size=105, seed=seed, augment=PAD, start_step=epoch, balanced=True)
        return next(batches)[1].indexes.tolist()

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(each) for each in orders}) == 4
    big = [{index for index in each if index < 100} for each in orders[:2]]
    assert len(big[0] | big[1]) == 100, "the large class goes on where it stopped"


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
        list(islice(train_batches(split, batch_size=3, seed=0, augment=augment), 9))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanished_is_missing_in_all_its_turns(image_folder: ImageFolder, workers: int) -> None:
    root, augment = image_folder({"train": {"a": 4, "b": 4}}), AugmentConfig(repeats=3)
    split = file_split(root, workers, augment)
    before = list(islice(train_batches(split, batch_size=8, seed=0, augment=augment), 4))
    (root / "train/a/2.jpg").unlink()
    after = list(islice(train_batches(split, batch_size=8, seed=0, augment=augment), 4))
    lost = split.names.index("train/a/2.jpg")
    assert any((batch.indexes == lost).any() for _, batch in before)
    for (_, batch), (_, rest) in zip(before, after, strict=True):
        assert batch.turns is not None
        assert rest.turns is not None
        left = batch.indexes != lost
        assert torch.equal(rest.indexes, batch.indexes[left])
        assert torch.equal(rest.turns, batch.turns[left])
        assert torch.equal(rest.images, batch.images[left])
    assert [file.path for file in split.skipped] == ["train/a/2.jpg"]


def test_training_goes_on_when_whole_batches_are_gone(image_folder: ImageFolder) -> None:
    root, augment = image_folder({"train": {"a": 3, "b": 3}}), AugmentConfig()
    split = file_split(root, 0, augment)
    for i in range(3):
        (root / f"train/a/{i}.jpg").unlink()
    batches = list(islice(train_batches(split, batch_size=1, seed=0, augment=augment), 6))
    assert sorted(batch.labels.tolist() for _, batch in batches) == [[], [], [], [1], [1], [1]], "each keeps its step"


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="no waiting for a process that stays to be asked for")
def test_a_lost_loader_is_told_of_when_a_batch_is_asked_for(image_folder: ImageFolder) -> None:
    """torch's own error would come at any moment, in the middle of a step as well."""
    root, augment = image_folder({"train": {"a": 8, "b": 8}}), AugmentConfig()
    batches = train_batches(file_split(root, 1, augment), batch_size=4, seed=0, augment=augment)
    next(batches)
    (loader,) = multiprocessing.active_children()
    assert loader.pid is not None
    os.kill(loader.pid, signal.SIGKILL)
    os.waitid(os.P_PID, loader.pid, os.WEXITED | os.WNOWAIT)
    time.sleep(0.01)  # in which the signal's handler runs
    with pytest.raises(LoaderLost, match=r"a loader process was killed, .*; use fewer \(data\.workers, "):
        next(batches)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError()])
def test_a_loader_lost_while_it_hands_a_batch_over(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """torch asks whether it is alive, and it still is: its end has only begun."""

    def dying(*_: Any, **__: Any) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr("vitrail.data.batches.DataLoader", dying)
    root, augment = image_folder({"train": {"a": 8, "b": 8}}), AugmentConfig()
    with pytest.raises(LoaderLost, match="a loader process was killed"):
        next(train_batches(file_split(root, 1, augment), batch_size=4, seed=0, augment=augment))


def test_a_lack_of_shared_memory_is_told(image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not left to the queue's thread, which would drop the batch that is waited for."""
    root, augment = image_folder({"train": {"a": 8, "b": 8}}), AugmentConfig()

    def full(_: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # in the loader, which is a copy of this process
    batches = train_batches(file_split(root, 1, augment), batch_size=4, seed=0, augment=augment)
    with pytest.raises(
        LoaderLost, match=r"^the loader processes ran out of shared memory \(/dev/shm\); make it larger, or use"
    ):
        next(batches)


def test_what_a_loader_is_asked_for_goes_to_it_by_value() -> None:
    order = torch.arange(1000).view(100, 10)
    for turns in (None, order[4]):
        sent = bytes(multiprocessing.reduction.ForkingPickler.dumps(Job(2, order[3], turns)))
        assert b"torch.multiprocessing" not in sent, "no tensor, which would be put into shared memory"
        assert len(sent) < 600, "the row, not all that it is a part of"
        there = pickle.loads(sent)
        assert there.epoch == 2
        assert torch.equal(there.indexes, order[3])
        assert there.turns is None if turns is None else torch.equal(there.turns, turns)


def test_a_split_on_a_device_reads_there_if_it_fits() -> None:
    split = numbered(12)
    assert split.on(torch.device("cpu"), budget_bytes=1e9) is split
    assert split.on(torch.device("meta"), budget_bytes=split.images.nbytes - 1) is split
    moved = split.on(torch.device("meta"), budget_bytes=split.images.nbytes)
    batch, failures = moved.read(torch.tensor([3, 1]))
    assert batch.images.device.type == "meta"
    assert batch.images.shape == (2, *split.images.shape[1:])
    assert {value.device.type for name, value in vars(batch).items() if name != "images" and value is not None} == {"cpu"}
    assert failures == ()
    assert split.images.device.type == "cpu"

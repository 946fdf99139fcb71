"""Some images of a split: their pixels, labels and names, and files that fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import ImageFolder
from vitrail.data.batches import eval_batches
from vitrail.data.sources import open_source
from vitrail.data.subset import Subset, fraction_of, stratified_order
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


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), share=st.floats(0.01, 1))
def test_classes_join_in_proportion(labels: list[int], share: float) -> None:
    classes, names = torch.tensor(labels), [f"{place}.jpg" for place in range(len(labels))]
    order = stratified_order(classes, names)
    assert order.sort().values.tolist() == list(range(len(labels)))
    counts = classes.bincount(minlength=5)
    for count in range(int((counts > 0).sum()), len(labels) + 1):
        taken = classes[order[:count]].bincount(minlength=5)
        assert ((taken > 0) == (counts > 0)).all(), "every class has an image"
        assert (taken - counts * count / len(labels)).abs().max() <= 5, "in proportion"
    part = fraction_of(classes, names, share)
    assert part.equal(part.sort().values)
    assert len(part) == max(int((counts > 0).sum()), round(share * len(labels)))


def test_large_parts_are_within_an_image_of_their_share() -> None:
    classes, names = torch.arange(3000) % 7 % 4, [f"{place}.jpg" for place in range(3000)]
    for share in (0.1, 0.25, 0.5):
        taken = classes[fraction_of(classes, names, share)].bincount()
        assert (taken - classes.bincount() * share).abs().max() <= 1


def test_a_smaller_part_is_in_a_larger_one_and_does_not_follow_the_order() -> None:
    classes, names = torch.arange(200) % 3, [f"{place}.jpg" for place in range(200)]
    small, large = (fraction_of(classes, names, share) for share in (0.2, 0.6))
    assert set(small.tolist()) < set(large.tolist())
    backwards = fraction_of(classes.flip(0), names[::-1], 0.2)
    assert {names[::-1][place] for place in backwards.tolist()} == {names[place] for place in small.tolist()}
    assert small.float().mean() == pytest.approx(99.5, abs=20), "from everywhere"


def test_a_source_has_a_fraction_of_its_training_images(image_folder: ImageFolder) -> None:
    root = image_folder({"train": {"cat": 12, "dog": 4}, "val": {"cat": 2, "dog": 2}})
    whole, half = (open_source(str(root), fraction=share) for share in (1.0, 0.5))
    assert (whole.class_counts(), half.class_counts(), half.train_images()) == ((12, 4), (6, 2), 8)
    split = half.load("train", preprocessing=VIEW, cfg=DataConfig())
    assert split.labels.bincount().tolist() == [6, 2]
    assert len(half.load("val", preprocessing=VIEW, cfg=DataConfig())) == 4
    assert open_source(str(root), fraction=1e-6).class_counts() == (1, 1)
    named = open_source("fashion-sample", fraction=0.25)
    assert named.class_counts() == pytest.approx([count / 4 for count in open_source("fashion-sample").class_counts()], abs=1)


def test_a_fraction_of_images_with_labels_has_every_label(image_folder: ImageFolder) -> None:
    root = image_folder({"photos": 40}, name="beach")
    lines = [f"photos/{place}.jpg,{'sea;' * (place % 2)}{'rare' if place == 7 else 'sky'},train" for place in range(40)]
    (root / "labels.csv").write_text("\n".join(["path,labels,split", *lines]) + "\n")
    part = open_source(str(root), val_fraction=0.0, fraction=0.1)
    assert part.train_images() == 4
    assert part.class_counts()[0] == 1
    assert all(part.class_counts())
    assert part.load("train", preprocessing=VIEW, cfg=DataConfig()).targets(torch.arange(4)).any(0).all()  # type: ignore[union-attr]


def test_a_fraction_is_a_share() -> None:
    for wrong in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="must be above 0, and at most 1"):
            DataConfig(fraction=wrong)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.augment import augment
from vitrail.data.batch import RawBatch
from vitrail.data.batches import train_batches
from vitrail.data.memory import whole_boxes
from vitrail.data.pack import augment_packed, fit_patches, fit_pixels, packed_sizes
from vitrail.data.sources import open_source
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing
from vitrail.settings.augment import RandAugment

IMAGES = Preprocessing(img_size=(32, 32), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
SIDES = st.integers(1, 5000)


@given(height=SIDES, width=SIDES, budget=st.tuples(st.integers(1, 24), st.integers(1, 24)), patch=st.sampled_from([4, 14, 16]))
def test_sizes_are_whole_patches_within_the_budget(height: int, width: int, budget: tuple[int, int], patch: int) -> None:
    limit = budget[0] * budget[1]
    high, wide = fit_patches((height, width), budget=(budget[0] * patch, budget[1] * patch), patch=(patch, patch))
    rows, columns = high // patch, wide // patch
    assert (high, wide) == (rows * patch, columns * patch)
    assert 1 <= rows * columns <= limit
    scale = min(1.0, (limit * patch * patch / (height * width)) ** 0.5)
    if min(height, width) * scale > 2 * patch:  # not a thin crop
        assert abs(rows - height * scale / patch) <= 2
        assert abs(columns - width * scale / patch) <= 2


@given(height=SIDES, width=SIDES)
def test_small_crops_keep_their_pixels(height: int, width: int) -> None:
    size = fit_pixels((height, width), budget=(64, 64))
    if height * width <= 64 * 64:
        assert size == (height, width)
    else:
        assert size[0] * size[1] <= 64 * 64 * 1.1 + max(height, width)


def raw_batch(sizes: list[tuple[int, int]]) -> RawBatch:
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(0, 256, (len(sizes), 3, 80, 80), dtype=torch.uint8, generator=generator)
    both = torch.tensor(sizes)
    return RawBatch(canvas, both, whole_boxes(both), torch.arange(len(sizes)) % 2, torch.arange(len(sizes)))


def test_an_image_is_augmented_as_alone() -> None:
    raw, cfg = raw_batch([(20, 30), (64, 16), (20, 30), (80, 80)]), AugmentConfig(rand_augment=RandAugment(), erase_prob=0.5)
    options: dict[str, Any] = {"cfg": cfg, "num_classes": 2, "seed": 0, "epoch": 3}
    batch = augment_packed(raw, preprocessing=IMAGES, patch=(4, 4), **options)
    assert batch.sizes is not None
    assert sorted(batch.sizes) == sorted(packed_sizes(raw.boxes, budget=(32, 32), patch=(4, 4)))
    assert len(set(batch.sizes)) == 3
    for row, ((height, width), index) in enumerate(zip(batch.sizes, batch.indexes.tolist(), strict=True)):
        alone = augment(raw.rows(torch.tensor([index])), preprocessing=replace(IMAGES, img_size=(height, width)), **options)
        torch.testing.assert_close(batch.images[row, :, :height, :width], alone.images[0])
        assert not batch.images[row, :, height:].any()
        assert not batch.images[row, :, :, width:].any()
        assert batch.labels[row] == raw.labels[index]


def test_rows_of_a_packed_batch_keep_their_sizes() -> None:
    batch = augment_packed(
        raw_batch([(20, 30), (64, 16), (20, 30)]),
        preprocessing=IMAGES,
        patch=(4, 4),
        cfg=AugmentConfig(),
        num_classes=2,
        seed=0,
        epoch=0,
    )
    assert batch.sizes is not None
    assert batch.rows(slice(1, 3)).sizes == batch.sizes[1:3]
    assert batch.part(0, 3).sizes == batch.sizes[:1]


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_crops_of_files_keep_their_aspect_ratio(memory_gb: float, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for number, size in enumerate([(200, 100), (60, 180), (24, 20)]):  # width, height
            pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / label / f"{number}.png")
    whole = AugmentConfig(crop="resized", crop_scale=(1.0, 1.0), crop_ratio=(0.1, 10.0))
    cfg = DataConfig(pack=True, memory_gb=memory_gb, workers=0, val_fraction=0.0)
    split = open_source(str(tmp_path)).load("train", preprocessing=IMAGES, cfg=cfg, augment=whole)
    _, raw = next(train_batches(split, batch_size=6, seed=0, augment=whole))
    ratios = dict(zip(raw.indexes.tolist(), (raw.boxes[:, 3] / raw.boxes[:, 2]).tolist(), strict=True))
    drawn = dict.fromkeys(ratios, 0.0)
    for index in ratios:
        height, width = split.sizes[index].tolist()
        drawn[index] = width / height
    sizes = packed_sizes(raw.boxes, budget=(32, 32), patch=(4, 4))
    assert len(set(sizes)) > 1
    assert all(height * width <= 32 * 32 for height, width in sizes)
    for (height, width), index in zip(sizes, raw.indexes.tolist(), strict=True):
        assert 0.6 < (width / height) / ratios[index] < 1.6

"""Colours of patches over a run: alignment, thinning, and the picture that grows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.memory import FixedSplit
from vitrail.models import Swin, ViT
from vitrail.settings import Preprocessing
from vitrail.train.patch_colors import COLUMNS, PatchColors, align, draw_patch_colors, steps_of, thin, write_strip

VIEW = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.25,))


def split(count: int = 10) -> FixedSplit:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8))
    return FixedSplit(images, labels=torch.zeros(count, dtype=torch.long), names=[str(i) for i in range(count)])


@settings(max_examples=50)
@given(seed=st.integers(0, 999), order=st.permutations(range(3)), signs=st.tuples(*[st.booleans()] * 3))
def test_order_and_sign_of_components_do_not_matter(seed: int, order: list[int], signs: tuple[bool, ...]) -> None:
    before = np.random.default_rng(seed).random((40, 3))
    now = np.stack([1 - before[:, k] if signs[k] else before[:, k] for k in order], axis=1)
    np.testing.assert_allclose(align(now, before), before, atol=1e-12)


def test_components_that_are_flat_stay_so() -> None:
    flat = np.full((6, 3), 0.5)
    np.testing.assert_array_equal(align(flat, flat), flat)


@settings(max_examples=50)
@given(steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True).map(sorted), most=st.integers(2, 15))
def test_columns_are_thinned_from_the_first_to_the_last(steps: list[int], most: int) -> None:
    kept = thin(steps, most)
    assert len(kept) == min(most, len(steps))
    assert (kept[0], kept[-1]) == (steps[0], steps[-1])
    assert all(a < b for a, b in itertools.pairwise(kept))


def colors(seed: int) -> PatchColors:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return PatchColors(pixels, torch.rand(2, 4, 4, 3, generator=generator))


def test_the_picture_grows_by_a_column_and_repeats_after_a_resumption(tmp_path: Path) -> None:
    widths = []
    for step in range(14):
        with Image.open(write_strip(tmp_path, colors(step), step=step)) as picture:
            widths.append(picture.width)
    cell = widths[1] - widths[0]
    assert widths == [widths[0] + cell * min(step, COLUMNS - 1) for step in range(14)]
    last = (tmp_path / "pca.png").read_bytes()
    assert steps_of(tmp_path / "pca-columns", before=5) == [0, 1, 2, 3, 4]
    for step in range(5, 14):  # columns that were drawn after the checkpoint are drawn again
        write_strip(tmp_path, colors(step), step=step)
    assert (tmp_path / "pca.png").read_bytes() == last
    assert not list(tmp_path.rglob("*.part"))


def test_tokens_and_maps_have_colours_and_a_collapsed_model_has_one() -> None:
    torch.manual_seed(0)
    vit = ViT(img_size=8, patch_size=2, in_channels=1, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    swin = Swin(
        img_size=8, patch_size=2, in_channels=1, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2, num_classes=0
    )
    for model, grid in ((vit, 4), (swin, 2)):
        found = draw_patch_colors(model.train(), split(), preprocessing=VIEW, device=torch.device("cpu"))
        assert found is not None
        assert found.components.shape == (8, grid, grid, 3)
        assert found.components.amin() == 0
        assert found.components.amax() == 1
        assert model.training
    with torch.no_grad():
        vit.norm.weight.zero_()  # every token is the bias
    flat = draw_patch_colors(vit, split(), preprocessing=VIEW, device=torch.device("cpu"))
    assert flat is not None
    assert bool((flat.components == 0.5).all())


def test_a_model_of_one_patch_has_no_picture() -> None:
    torch.manual_seed(0)
    one = ViT(img_size=8, patch_size=8, in_channels=1, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    assert draw_patch_colors(one, split(1), preprocessing=VIEW, device=torch.device("cpu")) is None


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_are_enough(count: int) -> None:
    torch.manual_seed(0)
    vit = ViT(img_size=8, patch_size=2, in_channels=1, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    found = draw_patch_colors(vit, split(count), preprocessing=VIEW, device=torch.device("cpu"))
    assert found is not None
    assert len(found.pictures) == count

"""Rotation, scale and JPEG quality, beside Pillow and torch."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.evaluate.changes import compress, rescale, rotate


def pixels(height: int, width: int, *, channels: int = 3) -> Tensor:
    coarse = torch.rand(2, channels, 6, 6, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).byte()


def apart(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


def test_quarter_turns_are_exact_and_others_pillows() -> None:
    images, mean = pixels(40, 40), (0.5, 0.25, 0.0)
    for quarters in (1, 2, -1):
        assert apart(rotate(images, 90.0 * quarters, mean=mean), images.rot90(quarters, (2, 3))) <= 1
    turned = rotate(images, 30, mean=mean)
    theirs = Image.fromarray(images[0].permute(1, 2, 0).numpy()).rotate(30, Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
    assert apart(turned[0, :, 12:28, 12:28], expected[:, 12:28, 12:28]) <= 2
    assert turned[0, :, 0, 0].tolist() == [128, 64, 0], "corners have the mean colour"
    assert rotate(pixels(20, 30), 45, mean=mean).shape == (2, 3, 20, 30)


@pytest.mark.parametrize(("factor", "size"), [(0.5, (20, 15)), (0.7, (28, 21)), (1.5, (60, 45)), (2.0, (80, 60))])
def test_scales_are_pillows_resize_in_the_middle(factor: float, size: tuple[int, int]) -> None:
    images = pixels(40, 30)
    made = rescale(images, factor, mean=(0.5, 0.5, 0.5))
    theirs = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    resized = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)
    assert made.shape == images.shape
    top, left = (size[0] - 40) // 2, (size[1] - 30) // 2
    if factor > 1:
        assert apart(made[0], resized[:, top : top + 40, left : left + 30]) <= 1
    else:
        assert apart(made[0, :, -top : size[0] - top, -left : size[1] - left], resized) <= 1
        assert set(made[0, :, 0].flatten().tolist()) == {128}


@pytest.mark.parametrize("quality", [5, 30, 90])
def test_jpegs_are_pillows(quality: int) -> None:
    images = pixels(50, 61)
    file = io.BytesIO()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()
    made = compress(images, Draws(seed=0, epoch=0, indexes=torch.arange(2)), quality)
    assert (made[0] - expected).abs().mean() < 1.5

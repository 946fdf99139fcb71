from __future__ import annotations

import math

import numpy as np
import torch
from planted import cropped, photo

from vitrail.check.alignment import align
from vitrail.check.scan import make_thumbnails
from vitrail.check.windows import FLIPS, WINDOWS


def thumbnail(picture: object) -> torch.Tensor:
    return torch.from_numpy(make_thumbnails(picture)[0])[None]  # type: ignore[arg-type]


def test_the_place_of_a_crop_is_found_between_the_windows() -> None:
    picture = photo(3, size=(400, 400))
    aligned = align(thumbnail(picture), thumbnail(cropped(picture, 0.84, 0.4, 0.7)), torch.tensor([0]), torch.tensor([0]))
    down, across, height, width = aligned.windows[0].tolist()
    assert math.isclose(math.exp(height), 0.84, abs_tol=0.02)
    assert math.isclose(math.exp(width), 0.84, abs_tol=0.02)
    assert math.isclose(down, 0.16 * 0.4 + 0.42, abs_tol=0.02)
    assert math.isclose(across, 0.16 * 0.7 + 0.42, abs_tol=0.02)
    assert aligned.residual[0] < 0.02


def test_gain_and_offset_are_those_of_the_other_image() -> None:
    pixels = np.asarray(make_thumbnails(photo(4))[0])
    other = (0.5 * pixels + 30).round().astype(np.uint8)
    aligned = align(torch.from_numpy(pixels)[None], torch.from_numpy(other)[None], torch.tensor([0]), torch.tensor([0]))
    torch.testing.assert_close(aligned.gain, torch.tensor([0.5]), atol=0.02, rtol=0)
    torch.testing.assert_close(aligned.offset, torch.tensor([30.0]), atol=2, rtol=0)


def test_flips_are_undone() -> None:
    image = thumbnail(photo(5))
    for number, turned in enumerate(FLIPS):
        axes = [axis for axis, there in zip((1, 2), turned, strict=True) if there]
        aligned = align(image, image.flip(axes), torch.tensor([0]), torch.tensor([number]))
        assert aligned.residual[0] < 1e-4


def test_different_images_stay_different() -> None:
    images = torch.cat([thumbnail(photo(seed)) for seed in range(8)])
    others = torch.cat([thumbnail(photo(seed)) for seed in range(8, 16)])
    aligned = align(images, others, torch.zeros(8, dtype=torch.long) + len(WINDOWS) // 2, torch.zeros(8, dtype=torch.long))
    assert aligned.residual.min() > 0.1

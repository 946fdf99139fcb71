from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from planted import photo

from vitrail.check.scan import make_thumbnails
from vitrail.check.windows import FLIPS, FREQUENCIES, WINDOWS, Describer, flip_signs


def thumbnails(count: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([make_thumbnails(photo(seed))[0] for seed in range(count)]))


@given(number=st.integers(0, len(FLIPS) - 1))
def test_signs_are_the_descriptors_of_flips(number: int) -> None:
    images = thumbnails(3)
    describer = Describer.fit(images)
    axes = [axis for axis, turned in zip((1, 2), FLIPS[number], strict=True) if turned]
    flipped = describer.describe(images.flip(axes), WINDOWS[:1])[:, 0]
    torch.testing.assert_close(describer.describe(images, WINDOWS[:1])[:, 0] * flip_signs()[number], flipped, atol=1e-4, rtol=0)


def test_a_window_is_described_as_its_crop() -> None:
    picture = photo(0, size=(480, 480))
    thumbnail = torch.from_numpy(make_thumbnails(picture)[0])[None]
    describer = Describer(torch.ones(FREQUENCIES**2 - 1))
    for window in (WINDOWS[1], WINDOWS[20], WINDOWS[-1]):
        left, top = round(480 * window.left), round(480 * window.top)
        box = (left, top, left + round(480 * window.width), top + round(480 * window.height))
        crop = torch.from_numpy(make_thumbnails(picture.crop(box))[0])[None]
        similarity = (describer.describe(thumbnail, (window,)) * describer.describe(crop, WINDOWS[:1])).sum()
        assert similarity > 0.995


def test_windows_lie_in_the_image() -> None:
    assert len(set(WINDOWS)) == len(WINDOWS)
    assert all(0 <= w.top <= w.top + w.height <= 1 + 1e-9 and 0 <= w.left <= w.left + w.width <= 1 + 1e-9 for w in WINDOWS)


def test_brightness_and_contrast_change_no_descriptor() -> None:
    dim = np.asarray(Image.fromarray(np.asarray(thumbnails(1)[0]) // 4), np.uint8)
    images = torch.from_numpy(np.stack([dim, dim * 3 + 20]))
    one, other = Describer(torch.ones(FREQUENCIES**2 - 1)).describe(images, WINDOWS[:1])[:, 0]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from planted import photo

from vitrail.check.sharpness import blur_of


def test_blur_grows_with_the_radius() -> None:
    picture = photo(0, size=(320, 240))
    radii = (0, 1, 2, 4)
    measured = [blur_of(picture.filter(ImageFilter.GaussianBlur(radius))) for radius in radii]
    assert measured == sorted(measured, key=lambda value: value or 0)
    assert all(value is not None and 0 <= value <= 1 for value in measured)


def test_blur_is_as_skimage_measures_it() -> None:
    """Another implementation of the same paper, where it is installed."""
    metrics = pytest.importorskip("skimage.measure")
    for radius in (0, 1, 3):
        picture = photo(1, size=(200, 150)).convert("L").filter(ImageFilter.GaussianBlur(radius))
        blur = blur_of(picture)
        assert blur is not None
        assert abs(blur - metrics.blur_effect(np.asarray(picture), h_size=9)) < 0.1  # it takes Sobel's derivatives


@pytest.mark.parametrize("picture", [Image.new("RGB", (100, 100), "red"), photo(0, size=(60, 200))])
def test_blank_and_small_images_are_not_measured(picture: Image.Image) -> None:
    assert blur_of(picture) is None

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted import NEAR, photo

import vitrail.data
from vitrail.check.near_duplicates import find_near_duplicates
from vitrail.check.scan import make_thumbnails
from vitrail.data.named import NAMED, is_complete, read_arrays


def fashion(count: int) -> list[Image.Image]:
    with np.load(Path(vitrail.data.__file__).parent / "fashion_sample.npz") as arrays:
        return [Image.fromarray(image.reshape(28, 28)) for image in arrays["train_images"][:count]]


def found(pictures: list[Image.Image], planted: int, *, resize: bool) -> tuple[float, float]:
    """Recall of planted near duplicates, one of each of some images, and the share of images in other pairs."""
    sources = np.random.default_rng(0).permutation(len(pictures))[:planted].tolist()
    ways = list(NEAR.values())
    copies = [ways[at % len(ways)](pictures[source]) for at, source in enumerate(sources)]
    if resize:
        copies = [copy.resize(pictures[0].size, Image.Resampling.BICUBIC) for copy in copies]
    made = [make_thumbnails(picture.convert(pictures[0].mode)) for picture in [*pictures, *copies]]
    pairs = find_near_duplicates(np.stack([luminance for luminance, _ in made]), np.stack([colour for _, colour in made]))
    sure = {(pair.first, pair.second) for pair in pairs if pair.sure}
    expected = {(source, len(pictures) + at) for at, source in enumerate(sources)}
    false = {image for pair in sure - expected for image in pair if image < len(pictures)}
    return len(sure & expected) / planted, len(false) / len(pictures)


def test_planted_near_duplicates_of_photographs() -> None:
    recall, false = found([photo(seed) for seed in range(150)], 45, resize=False)
    assert recall >= 0.9
    assert false <= 0.01


def test_planted_near_duplicates_of_fashion_mnist() -> None:
    recall, false = found(fashion(700), 45, resize=True)
    assert recall >= 0.9
    assert false <= 0.01


@pytest.mark.slow
def test_planted_near_duplicates_of_the_whole_sample() -> None:
    recall, false = found(fashion(10_000), 300, resize=True)
    assert recall >= 0.9
    assert false <= 0.01


@pytest.mark.full
@pytest.mark.slow
def test_planted_near_duplicates_of_the_full_set() -> None:
    kind = NAMED["fashion-mnist"]
    if kind.installed is None or not is_complete(kind, kind.installed):
        pytest.skip("needs Debian's dataset-fashion-mnist")
    images, _ = read_arrays(kind, kind.installed, "test")
    recall, false = found([Image.fromarray(image[0]) for image in images], 300, resize=True)
    assert recall >= 0.9
    assert false <= 0.01


def test_images_that_show_nothing_are_no_duplicates() -> None:
    luminance = np.full((5, 32, 32), 7, np.uint8)
    assert find_near_duplicates(luminance, np.zeros((5, 2, 16, 16), np.int8)) == []
    assert find_near_duplicates(luminance[:0], np.zeros((0, 2, 16, 16), np.int8)) == []


def test_the_same_shape_in_another_colour_is_no_duplicate() -> None:
    pixels = np.asarray(photo(0))
    pictures = [photo(seed) for seed in range(1, 20)]
    pictures += [Image.fromarray(pixels), Image.fromarray(np.ascontiguousarray(pixels[:, :, [2, 1, 0]]))]
    made = [make_thumbnails(picture) for picture in pictures]
    assert find_near_duplicates(np.stack([one for one, _ in made]), np.stack([two for _, two in made])) == []


def test_a_grey_copy_is_a_duplicate() -> None:
    pictures = [photo(seed) for seed in range(20)]
    made = [make_thumbnails(picture) for picture in [*pictures, pictures[3].convert("L")]]
    (pair,) = find_near_duplicates(np.stack([one for one, _ in made]), np.stack([two for _, two in made]))
    assert (pair.first, pair.second, pair.sure) == (3, 20, True)

"""Corruptions beside the package `imagecorruptions`, which computes one image at a time in NumPy, with the same random numbers.

Where its random numbers can't be given, the distributions are compared. All differences are in levels of 255, before the result
is rounded; the package is older than the libraries here, and `theirs` puts back what it misses in them.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from scipy.stats import poisson
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.evaluate.corruptions import CORRUPTIONS, SEVERITIES, weather
from vitrail.evaluate.corruptions.noise import poisson_table, shot_noise

SIDE = 224
Numbers = Iterator[np.ndarray]


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    """The module of the package's corruptions."""
    pytest.importorskip("cv2", reason="OpenCV needs libGL", exc_type=ImportError)
    filters = pytest.importorskip("skimage.filters")
    gaussian = filters.gaussian

    def with_multichannel(image: Any, sigma: Any = 1, *, multichannel: bool = False, **options: Any) -> Any:
        return gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)

    resources, interpolation = types.ModuleType("pkg_resources"), types.ModuleType("scipy.ndimage.interpolation")
    resources.resource_filename = (  # type: ignore[attr-defined]
        lambda module, name: str(Path(sys.modules[module].__file__ or "").parent / name)
    )
    interpolation.map_coordinates = scipy.ndimage.map_coordinates  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setitem(sys.modules, "scipy.ndimage.interpolation", interpolation)
        patch.setattr(np, "float_", np.float64, raising=False)
        patch.setattr(filters, "gaussian", with_multichannel)
        module = pytest.importorskip("imagecorruptions.corruptions")
        yield importlib.reload(module)
        sys.modules.pop("imagecorruptions.corruptions")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """What stands for a photograph: smooth colours, edges, fine texture, black and white."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    colour = np.stack([0.5 + 0.4 * np.sin(7 * x + 2 * y), 0.3 + 0.6 * y, 0.5 + 0.4 * np.cos(9 * y - 4 * x)], -1)
    colour[60:140, 40:120] = (0.9, 0.2, 0.1)
    colour[(x - 0.7) ** 2 + (y - 0.6) ** 2 < 0.03] = (0.05, 0.1, 0.4)
    colour[200:, :60], colour[:20, 180:] = 0.0, 1.0
    pixels = colour + 0.05 * scipy.ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (1, 1, 0)) * 3
    return (pixels.clip(0, 1) * 255).astype(np.uint8)


def ours(photo: np.ndarray, name: str, severity: int, draws: Draws) -> np.ndarray:
    """Our result before it is rounded, from 0 to 255, (H, W, C)."""
    corruption, images = CORRUPTIONS[name], torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    made = corruption.apply(images, draws, **corruption.arguments(severity, side=min(photo.shape[:2])))
    result: np.ndarray = made[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255
    return result


def drawn() -> Draws:
    return Draws(seed=3, epoch=0, indexes=torch.tensor([5]))


def difference(first: Any, second: Any) -> tuple[float, float]:
    """Mean and greatest absolute difference."""
    apart = np.abs(np.asarray(first, float) - np.asarray(second, float))
    return float(apart.mean()), float(apart.max())


SAME = {  # greatest mean difference, greatest difference
    "defocus blur": (0.001, 0.01),
    "zoom blur": (0.001, 0.01),
    "brightness": (0.001, 0.01),
    "contrast": (0.001, 0.01),
    "pixelate": (0.6, 1.01),  # Pillow rounds to levels after each direction
    "jpeg compression": (0.6, 60.0),  # a coefficient half-way between two steps may go either way
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", SAME)
def test_without_random_numbers_images_are_the_same(
    theirs: Any, photo: np.ndarray, name: str, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenCV smooths the disc with its mirror image, which brightens by a hundredth where the disc reaches its border.
    disk = theirs.disk
    monkeypatch.setattr(theirs, "disk", lambda radius, alias_blur: smoothed_disc(disk, radius, alias_blur))
    expected = getattr(theirs, name.replace(" ", "_"))(Image.fromarray(photo), severity)
    mean, most = difference(ours(photo, name, severity, drawn()), expected)
    assert mean <= SAME[name][0]
    assert most <= SAME[name][1]


def smoothed_disc(disk: Callable[..., np.ndarray], radius: int, alias_blur: float) -> np.ndarray:
    """The package's disc with empty pixels around it before it is smoothed."""
    import cv2

    sharp = np.pad(disk(radius, alias_blur=1e-3), 2)  # not smoothed
    soft = 3 if radius <= 8 else 5
    return cv2.GaussianBlur(sharp, ksize=(soft, soft), sigmaX=alias_blur)


def uniform(*numbers: Tensor) -> Callable[..., Any]:
    """np.random.uniform, that returns these numbers between 0 and 1 in turn."""
    waiting = iter(numbers)

    def draw(low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        values = next(waiting).double().numpy()
        return low + (high - low) * (values.item() if size is None else values.reshape(size))

    return draw


def normal(numbers: Tensor) -> Callable[..., Any]:
    """np.random.normal, that returns these standard normal numbers."""
    return lambda loc=0.0, scale=1.0, size=None: loc + scale * numbers.double().numpy().reshape(size)


def integers(numbers: Tensor) -> Callable[..., Any]:
    """np.random.randint, that returns these numbers two by two."""
    waiting = iter(numbers.view(-1, 2).numpy())
    return lambda low, high, size: next(waiting)


def their_numbers(name: str, draws: Draws, severity: int) -> dict[str, Callable[..., Any]]:
    """Functions of np.random by name, with the random numbers of our corruption in the package's order."""
    values = CORRUPTIONS[name].arguments(severity, side=SIDE)
    if name == "gaussian noise":
        return {"normal": normal(draws.normal(name, 3 * SIDE * SIDE).view(3, SIDE, SIDE).permute(1, 2, 0).contiguous())}
    if name == "motion blur":
        return {"uniform": uniform(draws.uniform(name))}
    if name == "snow":
        return {"normal": normal(draws.normal(name, SIDE * SIDE)), "uniform": uniform(draws.uniform("snow direction"))}
    if name == "elastic transform":
        return {"uniform": uniform(*(draws.uniform(f"elastic {axis}", SIDE * SIDE) for axis in "xy"))}
    if name == "glass blur":
        reach, count = int(values["reach"]), (SIDE - 2 * int(values["reach"])) ** 2
        moves = [draws.integers(f"glass blur {turn}", high=2 * reach, n=2 * count) - reach for turn in range(values["rounds"])]
        return {"randint": integers(torch.cat(moves, dim=1))}
    steps = [256 >> power for power in range(8)]  # fog
    numbers = [
        draws.uniform(f"fog {kind} {step}", (256 // step) ** 2) for step in steps for kind in ("centre", "row", "column")
    ]
    return {"uniform": uniform(*numbers)}


FED = {  # greatest mean difference, greatest difference
    "gaussian noise": (0.001, 0.01),
    "glass blur": (0.01, 2.0),  # levels are cut to whole ones in between
    "motion blur": (0.001, 0.01),
    "snow": (0.01, 1.1),  # flakes are rounded to whole levels
    "fog": (0.001, 0.01),
    "elastic transform": (0.001, 0.01),
}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", FED)
def test_with_the_same_random_numbers_images_are_the_same(
    theirs: Any, photo: np.ndarray, name: str, severity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = drawn()
    found = ours(photo, name, severity, draws)
    for function, numbers in their_numbers(name, draws, severity).items():
        monkeypatch.setattr(np.random, function, numbers)
    expected = getattr(theirs, name.replace(" ", "_"))(Image.fromarray(photo), severity)
    mean, most = difference(found, expected)
    assert mean <= FED[name][0]
    assert most <= FED[name][1]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_is_added_as_theirs(theirs: Any, photo: np.ndarray, severity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a piece of their picture in the place of our texture."""
    monkeypatch.setattr(np.random, "randint", lambda low, high=None: 0)
    expected = theirs.frost(Image.fromarray(photo), severity)
    black = theirs.frost(Image.fromarray(np.zeros_like(photo)), severity)
    amount = CORRUPTIONS["frost"].arguments(severity, side=SIDE)["amount"]
    texture = torch.from_numpy(black / amount / 255).permute(2, 0, 1)[None].float()
    monkeypatch.setattr(weather, "frost_texture", lambda *_, **__: texture)
    assert difference(ours(photo, "frost", severity, drawn()), expected)[1] <= 0.01


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_changes_as_many_values(theirs: Any, photo: np.ndarray, severity: int) -> None:
    expected, found = theirs.impulse_noise(Image.fromarray(photo), severity), ours(photo, "impulse noise", severity, drawn())
    assert ((found == photo) | (found == 0) | (abs(found - 255) < 0.01) | (abs(found - photo) < 0.01)).all()
    for extreme in (0, 255):
        assert np.mean(abs(found - extreme) < 0.01) == pytest.approx(np.mean(abs(expected - extreme) < 0.01), abs=0.005)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_same_mean_and_spread(theirs: Any, photo: np.ndarray, severity: int) -> None:
    np.random.seed(0)  # noqa: NPY002  (the package draws from it)
    expected = theirs.shot_noise(Image.fromarray(photo), severity) - photo
    found = ours(photo, "shot noise", severity, drawn()) - photo
    assert found.mean() == pytest.approx(expected.mean(), abs=0.6)
    assert found.std() == pytest.approx(expected.std(), rel=0.01)


@pytest.mark.parametrize("photons", [3, 60, 500])
def test_counts_of_shot_noise_are_poissons(photons: int) -> None:
    table = poisson_table(float(photons)).double() / 2**24
    counts = np.arange(table.shape[1])
    exact = poisson.cdf(counts, np.arange(256)[:, None] / 255 * photons)
    assert np.abs(table.numpy() - exact).max() < 1e-7
    grey = torch.full((1, 1, 300, 300), 100 / 255)
    drawn_counts = shot_noise(grey, drawn(), photons=float(photons)) * photons
    share = drawn_counts.round().long().flatten().bincount(minlength=len(counts)) / grey.numel()
    torch.testing.assert_close(
        share[: len(counts)].double(), torch.from_numpy(poisson.pmf(counts, 100 / 255 * photons)), atol=0.005, rtol=0
    )


def test_the_affine_map_is_opencvs(photo: np.ndarray) -> None:
    """The elastic transform of small images begins with it, and the package has no small images."""
    import cv2

    from vitrail.evaluate.corruptions.digital import draw_affine

    draws, reach = drawn(), 12.0
    middle, half = SIDE // 2, SIDE // 3
    points = np.float32([[middle + half] * 2, [middle + half, middle - half], [middle - half] * 2])
    moved = points + reach * (2 * draws.uniform("elastic points", 6).view(3, 2).numpy() - 1)
    matrix = cv2.getAffineTransform(points, moved.astype(np.float32))
    expected = cv2.warpAffine(np.float32(photo), matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT_101)
    found = draw_affine(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255, draws, reach=reach)[0] * 255
    assert difference(found.permute(1, 2, 0), expected)[0] < 0.3  # OpenCV reads at 1/32 of a pixel

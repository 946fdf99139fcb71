from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitrail.data import color

NONE = torch.zeros(4)


def pictures(count: int, height: int = 19, width: int = 26, channels: int = 3) -> Tensor:
    """Noise over a slope, so that the levels are neither flat nor even."""
    generator = torch.Generator().manual_seed(count * 1000 + height * 100 + width * 10 + channels)
    noise = torch.rand(count, channels, height, width, generator=generator)
    return (noise * torch.linspace(30, 230, width) + 10).to(torch.uint8)


def check(
    operation: Callable[[Tensor, Tensor], Tensor],
    strengths: Tensor,
    oracle: Callable[[Tensor, float], Tensor],
    *,
    floats: bool = True,
    atol: float = 2e-2,
) -> None:
    """Every sample of one batch, each with its own strength, against torchvision on that sample alone."""
    images = pictures(len(strengths))
    before = images.float()
    ours = operation(before, strengths)
    assert torch.equal(before, images.float()), "an operation must not write into its input"
    for row, strength in enumerate(strengths.tolist()):
        theirs = oracle(images[row].float() / 255, strength) * 255 if floats else oracle(images[row], strength).float()
        torch.testing.assert_close(ours[row], theirs, atol=atol, rtol=0)


FACTORS = torch.tensor([0.0, 0.1, 0.7, 1.0, 1.3, 1.9])


@pytest.mark.parametrize(
    ("operation", "oracle"),
    [
        (color.brightness, TF.adjust_brightness),
        (color.contrast, TF.adjust_contrast),
        (color.saturation, TF.adjust_saturation),
        (color.sharpness, TF.adjust_sharpness),
    ],
)
def test_factors(operation: Callable[[Tensor, Tensor], Tensor], oracle: Callable[[Tensor, float], Tensor]) -> None:
    check(operation, FACTORS, oracle)


def test_posterize() -> None:
    check(color.posterize, torch.arange(1.0, 9.0), lambda x, bits: TF.posterize(x, int(bits)), floats=False)


def test_solarize() -> None:
    check(color.solarize, torch.tensor([0.0, 26.0, 128.0, 255.0]), lambda x, t: TF.solarize(x, t), floats=False)


def test_solarize_add() -> None:
    images, amounts = pictures(3), torch.tensor([0.0, 99.0, 128.0])
    ours = color.solarize_add(images.float(), amounts)
    for row, amount in enumerate(amounts.tolist()):
        levels = torch.tensor([min(255, v + int(amount)) if v < 128 else v for v in range(256)])
        assert torch.equal(ours[row], levels[images[row].long()].float())


def test_invert() -> None:
    check(color.invert, NONE, lambda x, _: TF.invert(x), floats=False)


def test_autocontrast() -> None:
    check(color.autocontrast, NONE, lambda x, _: TF.autocontrast(x), floats=False, atol=1.01)  # theirs cuts to whole levels
    check(color.autocontrast, NONE, lambda x, _: TF.autocontrast(x))


def test_equalize() -> None:
    check(color.equalize, NONE, lambda x, _: TF.equalize(x), floats=False)


@given(levels=st.lists(st.integers(0, 255), min_size=2, max_size=2), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_equalize_with_few_levels(levels: list[int], height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height * 41 + width)
    images = torch.tensor(levels, dtype=torch.uint8)[torch.randint(0, 2, (2, 1, height, width), generator=generator)]
    ours = color.equalize(images.float(), torch.zeros(2))
    for row in range(2):
        assert torch.equal(ours[row], TF.equalize(images[row]).float())


@pytest.mark.parametrize("operation", [color.autocontrast, color.equalize, color.sharpness, color.contrast])
def test_a_flat_image_stays(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    flat = torch.full((2, 3, 8, 8), 77.0)
    torch.testing.assert_close(operation(flat, torch.tensor([0.3, 1.7])), flat, atol=2e-2, rtol=0)


def test_grayscale() -> None:
    check(color.grayscale, NONE, lambda x, _: TF.rgb_to_grayscale(x, num_output_channels=3))


def test_gaussian_blur() -> None:
    sigmas = torch.tensor([0.1, 0.5, 1.3, 2.0])
    check(color.gaussian_blur, sigmas, lambda x, sigma: TF.gaussian_blur(x, [13, 13], [sigma, sigma]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (7, 4)])
def test_blur_and_sharpness_of_tiny_images(shape: tuple[int, int]) -> None:
    images = pictures(2, *shape).float()
    blurred = color.gaussian_blur(images, torch.tensor([0.5, 2.0]))
    assert blurred.shape == images.shape
    assert (blurred >= images.amin((2, 3), keepdim=True) - 1e-3).all()
    assert (blurred <= images.amax((2, 3), keepdim=True) + 1e-3).all()
    assert color.sharpness(images, torch.tensor([0.5, 2.0])).shape == images.shape


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_channel_counts(channels: int) -> None:
    images = pictures(3, channels=channels).float()
    for operation in (color.contrast, color.saturation, color.grayscale, color.equalize, color.gaussian_blur):
        assert operation(images, torch.tensor([0.5, 1.0, 1.5])).shape == images.shape


def test_a_grey_image_has_no_colour_to_lose() -> None:
    images = pictures(3, channels=1).float()
    torch.testing.assert_close(color.saturation(images, torch.tensor([0.0, 0.5, 1.9])), images)
    assert torch.equal(color.grayscale(images, torch.zeros(3)), images)

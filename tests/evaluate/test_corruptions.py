"""Corruptions of images of any size and number of channels: keyed draws, severities, and the texture of frost."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vitrail.evaluate.corruptions.filters import edge_index
from vitrail.evaluate.corruptions.weather import FROST_CONTRAST, FROST_LEVEL, FROST_TINT, frost_texture

NAMES = st.sampled_from(list(CORRUPTIONS))


def draws_of(*indexes: int, seed: int = 0) -> Draws:
    return Draws(seed=seed, epoch=0, indexes=torch.tensor(indexes))


def smooth(count: int, *, channels: int = 3, size: tuple[int, int] = (96, 96), seed: int = 0) -> Tensor:
    """Images with large structures."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).byte()


@given(
    name=NAMES,
    severity=st.sampled_from(SEVERITIES),
    channels=st.integers(1, 5),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
)
def test_any_size_and_number_of_channels(name: str, severity: int, channels: int, height: int, width: int) -> None:
    images = torch.randint(0, 256, (2, channels, height, width)).byte()
    made = corrupt(images, name, severity, draws=draws_of(3, 8))
    assert made.shape == images.shape
    assert made.dtype == torch.uint8


@given(name=NAMES, severity=st.sampled_from(SEVERITIES), side=st.sampled_from([28, 70]))
def test_an_image_comes_out_the_same_in_any_batch(name: str, severity: int, side: int) -> None:
    images = smooth(4, size=(side, side))
    together = corrupt(images, name, severity, draws=draws_of(9, 2, 4, 7))
    alone = corrupt(images[2:3], name, severity, draws=draws_of(4))
    assert int((together[2:3].int() - alone.int()).abs().max()) <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_are_those_of_the_image_and_the_seed(name: str) -> None:
    images = smooth(1).expand(3, -1, -1, -1)
    made = corrupt(images, name, 3, draws=draws_of(1, 1, 2))
    other = corrupt(images[:1], name, 3, draws=draws_of(1, seed=5))
    assert made[0].equal(made[1])
    random = name not in ("defocus blur", "zoom blur", "brightness", "contrast", "pixelate", "jpeg compression")
    assert made[0].equal(made[2]) != random
    assert made[0].equal(other[0]) != random


ORDERED = ("gaussian noise", "shot noise", "impulse noise", "motion blur", "zoom blur", "brightness", "contrast", "pixelate")
"""Corruptions of which each severity changes the pixels more; the others are ordered by what they do to models."""


@pytest.mark.parametrize("side", [28, 96, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_greater_severity_is_a_greater_change(name: str, side: int) -> None:
    images = smooth(3, size=(side, side))
    draws = draws_of(0, 1, 2)
    changes = [(corrupt(images, name, s, draws=draws).float() - images).abs().mean().item() for s in SEVERITIES]
    assert min(changes) > 0
    assert changes == sorted(changes) or name not in ORDERED


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_lengths_follow_the_size_of_photographs(name: str) -> None:
    corruption = CORRUPTIONS[name]
    at, double, small = (corruption.arguments(4, side=side) for side in (224, 448, 28))
    assert {key for key in at if double[key] != at[key]} == set(corruption.lengths)
    assert all(double[key] == 2 * at[key] for key in corruption.lengths)
    assert tuple(at.values()) == tuple(corruption.photographs[3])
    assert tuple(small.values()) == tuple(corruption.small[3])
    assert tuple(corruption.arguments(4, side=63)) == tuple(at)


def test_grey_is_a_colour_without_colour() -> None:
    """What depends on no draw for each channel is the same for an image with equal channels, but for JPEG's colours."""
    grey = smooth(2, channels=1)
    for name in ("defocus blur", "glass blur", "motion blur", "zoom blur", "fog", "brightness", "contrast", "pixelate", "snow"):
        one = corrupt(grey, name, 3, draws=draws_of(0, 1)).int()
        three = corrupt(grey.expand(-1, 3, -1, -1), name, 3, draws=draws_of(0, 1)).int()
        assert int((one - three).abs().max()) <= 1, name


@pytest.mark.parametrize("quality_of", SEVERITIES)
def test_grey_jpegs_are_pillows(quality_of: int) -> None:
    image = smooth(1, channels=1, size=(70, 75))
    file = io.BytesIO()
    Image.fromarray(image[0, 0].numpy()).save(file, "JPEG", quality=[25, 18, 15, 10, 7][quality_of - 1])
    made = corrupt(image, "jpeg compression", quality_of, draws=draws_of(0))[0, 0].numpy().astype(int)
    assert np.abs(made - np.asarray(Image.open(file)).astype(int)).mean() < 0.5


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 224, 224), (1, 28, 28), (3, 100, 160)])
def test_frost_has_the_brightness_that_is_stated(channels: int, height: int, width: int) -> None:
    texture = frost_texture(draws_of(*range(64)), height=height, width=width, channels=channels)
    means = texture.mean((2, 3))  # (B, C)
    tint = torch.tensor(FROST_TINT if channels == 3 else (0.0,))
    assert ((means - tint > FROST_LEVEL[0] - 0.03) & (means - tint < FROST_LEVEL[1] + 0.03)).all()
    assert means.std(0).min() > 0.05, "every image has a level of its own"
    assert texture.std((2, 3)).mean().item() == pytest.approx(FROST_CONTRAST, rel=0.1)
    assert not torch.equal(texture[0], texture[1])


@pytest.mark.parametrize("edge", ["nearest", "reflect", "symmetric"])
def test_edges_are_numpys(edge: str) -> None:
    mode = {"nearest": "edge"}.get(edge, edge)
    for side, reach in ((5, 3), (4, 11), (1, 2)):
        found = edge_index(side, reach, edge, torch.device("cpu"))  # type: ignore[arg-type]
        assert found.tolist() == np.pad(np.arange(side), reach, mode=mode).tolist()  # type: ignore[call-overload]


def test_mistakes_are_refused() -> None:
    images = smooth(1)
    with pytest.raises(ValueError, match='corruption "fogg" is none of gaussian noise'):
        corrupt(images, "fogg", 1, draws=draws_of(0))
    for severity in (0, 6):
        with pytest.raises(ValueError, match="from 1 to 5"):
            corrupt(images, "fog", severity, draws=draws_of(0))

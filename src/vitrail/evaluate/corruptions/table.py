"""The fifteen common corruptions of Hendrycks and Dietterich (2019), each at five severities.

Constants are the published ones: those of CIFAR-10-C, made of images of 32 px, for a short side below 64 px, and those of
ImageNet-C, made of photographs of 224 px, from there on. The lengths in pixels of the latter are in proportion to the short
side; noise levels, shares and qualities are the same for all sizes. The elastic transform of photographs is that of Michaelis
et al. (2019), whose lengths are shares of the side, as they are in CIFAR-10-C.
"""

# B batch · C channels · H W image

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.evaluate.corruptions import blur, digital, noise, weather
from vitrail.evaluate.corruptions.filters import Images

SEVERITIES = (1, 2, 3, 4, 5)
PHOTO_SIDE = 224
"""Short side, in pixels, that the constants of photographs were published for."""
SMALL_BELOW = 64
"""Short side, in pixels, from which on an image has the constants of photographs."""


@dataclass(frozen=True)
class Corruption:
    """One corruption: its function, and the constants of each severity."""

    apply: Callable[..., Images]
    """Function of images from 0 to 1, draws and constants, which may leave that range."""
    constants: tuple[str, ...]
    """Names of the function's arguments."""
    photographs: Sequence[tuple[float, ...]]
    """Their values at severity 1 to 5 for images of `PHOTO_SIDE`."""
    small: Sequence[tuple[float, ...]]
    """The same for images with a short side below `SMALL_BELOW`."""
    lengths: tuple[str, ...] = ()
    """Constants in pixels, which are scaled from `PHOTO_SIDE` to a photograph's short side."""

    def arguments(self, severity: int, *, side: int) -> dict[str, Any]:
        """Return the function's arguments for images of a short side in pixels."""
        small = side < SMALL_BELOW  # the radii of these are near to one pixel, where scaled ones would lose their order
        values = dict(zip(self.constants, (self.small if small else self.photographs)[severity - 1], strict=True))
        return values if small else values | {name: values[name] * side / PHOTO_SIDE for name in self.lengths}


def single(*values: float) -> list[tuple[float]]:
    """Return the rows of a corruption with one constant."""
    return [(value,) for value in values]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": Corruption(
        noise.gaussian_noise,
        ("deviation",),
        single(0.08, 0.12, 0.18, 0.26, 0.38),
        single(0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "shot noise": Corruption(noise.shot_noise, ("photons",), single(60, 25, 12, 5, 3), single(500, 250, 100, 75, 50)),
    "impulse noise": Corruption(
        noise.impulse_noise,
        ("share",),
        single(0.03, 0.06, 0.09, 0.17, 0.27),
        single(0.01, 0.02, 0.03, 0.05, 0.07),
    ),
    "defocus blur": Corruption(
        blur.defocus_blur,
        ("radius", "blur"),
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        lengths=("radius",),
    ),
    "glass blur": Corruption(
        blur.glass_blur,
        ("sigma", "reach", "rounds"),
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        lengths=("sigma", "reach"),
    ),
    "motion blur": Corruption(
        blur.motion_blur,
        ("radius", "sigma"),
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        lengths=("radius", "sigma"),
    ),
    "zoom blur": Corruption(
        blur.zoom_blur,
        ("most", "step"),
        [(1.11, 0.01), (1.15, 0.01), (1.20, 0.02), (1.24, 0.02), (1.30, 0.03)],
        [(1.06, 0.01), (1.11, 0.01), (1.15, 0.01), (1.20, 0.01), (1.25, 0.01)],
    ),
    "snow": Corruption(
        weather.snow,
        ("mean", "deviation", "zoom", "threshold", "radius", "sigma", "keep"),
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        lengths=("zoom", "radius", "sigma"),
    ),
    "frost": Corruption(
        weather.frost,
        ("keep", "amount"),
        [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    ),
    "fog": Corruption(
        weather.fog,
        ("amount", "decay"),
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    ),
    "brightness": Corruption(
        weather.brightness,
        ("amount",),
        single(0.1, 0.2, 0.3, 0.4, 0.5),
        single(0.05, 0.1, 0.15, 0.2, 0.3),
    ),
    "contrast": Corruption(digital.contrast, ("factor",), single(0.4, 0.3, 0.2, 0.1, 0.05), single(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic transform": Corruption(
        digital.elastic_transform,
        ("amount", "sigma", "affine"),
        [(0.0625, 0.01, 0), (0.08125, 0.01, 0), (0.10625, 0.01, 0), (0.125, 0.01, 0), (0.15, 0.01, 0)],
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    ),
    "pixelate": Corruption(
        digital.pixelate, ("factor",), single(0.6, 0.5, 0.4, 0.3, 0.25), single(0.95, 0.9, 0.85, 0.75, 0.65)
    ),
    "jpeg compression": Corruption(
        digital.jpeg_compression, ("quality",), single(25, 18, 15, 10, 7), single(80, 65, 58, 50, 40)
    ),
}
"""In the order of the paper: noise, blur, weather, digital."""


def corrupt(images: UInt8[Tensor, "B C H W"], name: str, severity: int, *, draws: Draws) -> UInt8[Tensor, "B C H W"]:
    """Corrupt images by a row of `CORRUPTIONS`, on their device, on which `draws` are too.

    An image comes out the same in any batch, to rounding. All severities of one corruption have the same draws. Raises
    ValueError for an unknown name, and for a severity that is none of 1 to 5.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f'corruption "{name}" is none of {", ".join(CORRUPTIONS)}')
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} must be a whole number from 1 to 5")
    chosen = CORRUPTIONS[name]
    arguments = chosen.arguments(severity, side=min(images.shape[2:]))
    return (chosen.apply(images / 255, draws, **arguments).clamp(0, 1) * 255).round().byte()

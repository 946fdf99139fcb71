"""Changes of images that robustness is measured on: corruptions, rotation, scale and JPEG quality."""

# B batch · C channels · H W image

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vitrail.data.batch import constant
from vitrail.data.draws import Draws
from vitrail.data.geometry import affine, resample
from vitrail.data.memory import whole_boxes
from vitrail.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from vitrail.evaluate.corruptions.digital import jpeg_compression
from vitrail.settings import Preprocessing

ROTATIONS = (-90, -60, -30, -15, 15, 30, 60, 90, 180)
"""Degrees, counter-clockwise."""
SCALES = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0)
"""Sizes of what the image shows, of its own, within an image of the same size."""
QUALITIES = (90, 75, 50, 30, 20, 10, 5)
"""JPEG qualities."""
Pixels = UInt8[Tensor, "B C H W"]
Change = Callable[[Pixels, Draws], Pixels]


class Condition(NamedTuple):
    """A change of the pixels: name of the corruption or sweep, its severity or value, and the function."""

    name: str
    value: float
    change: Change


def pixel_conditions(preprocessing: Preprocessing) -> list[Condition]:
    """Return every change of the pixels that is measured."""
    mean = preprocessing.mean

    def corrupted(name: str, severity: int) -> Change:
        return lambda images, draws: corrupt(images, name, severity, draws=draws)

    def rotated(degrees: float) -> Change:
        return lambda images, draws: rotate(images, degrees, mean=mean)

    def rescaled(factor: float) -> Change:
        return lambda images, draws: rescale(images, factor, mean=mean)

    def compressed(quality: int) -> Change:
        return lambda images, draws: compress(images, draws, quality)

    found = [Condition(name, severity, corrupted(name, severity)) for name in CORRUPTIONS for severity in SEVERITIES]
    found += [Condition("rotation", value, rotated(value)) for value in ROTATIONS]
    found += [Condition("scale", value, rescaled(value)) for value in SCALES]
    return found + [Condition("jpeg", value, compressed(value)) for value in QUALITIES]


def fill_of(images: Pixels, mean: tuple[float, ...]) -> Float[Tensor, "C 1 1"]:
    """Return the data's mean colour, which takes the place of what lies outside of the image, as in augmentation."""
    return 255 * constant(mean, images.device)


def rotate(images: Pixels, degrees: float, *, mean: tuple[float, ...]) -> Pixels:
    """Rotate counter-clockwise about the centre."""
    size = (images.shape[2], images.shape[3])
    nothing, sizes = torch.zeros(len(images)), torch.tensor([size]).expand(len(images), 2)
    turn = affine(degrees=nothing + degrees, shear_x=nothing, shear_y=nothing, right=nothing, down=nothing, size=size)
    fill = fill_of(images, mean).flatten()
    return resample(images, sizes=sizes, boxes=whole_boxes(sizes), matrices=turn, out=size, fill=fill).round().byte()


def rescale(images: Pixels, factor: float, *, mean: tuple[float, ...]) -> Pixels:
    """Resize what the image shows within an image of the same size."""
    height, width = images.shape[2:]
    size = [max(1, round(side * factor)) for side in (height, width)]
    resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    if factor >= 1:
        return resized[:, :, top : top + height, left : left + width].round().byte()
    canvas = fill_of(images, mean).expand_as(images).clone()
    canvas[:, :, -top : size[0] - top, -left : size[1] - left] = resized
    return canvas.round().byte()


def compress(images: Pixels, draws: Draws, quality: int) -> Pixels:
    """Compress as a JPEG of a quality, and decompress."""
    return (jpeg_compression(images / 255, draws, quality=quality).clamp(0, 1) * 255).round().byte()

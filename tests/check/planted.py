"""Pictures that differ from each other, and faults planted among them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps


def photo(seed: int, *, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of shapes on a coloured ground with some noise: (width, height)."""
    draw = np.random.default_rng(seed)
    width, height = size
    picture = Image.new("RGB", size, tuple(draw.integers(90, 200, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for _ in range(14):
        x, y = draw.integers(0, width), draw.integers(0, height)
        w, h = draw.integers(width // 12, width // 2), draw.integers(height // 12, height // 2)
        shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
        shape([x - w // 2, y - h // 2, x + w // 2, y + h // 2], fill=tuple(draw.integers(0, 256, 3).tolist()))
    noise = draw.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, quality: int) -> Image.Image:
    """The picture after JPEG at a quality."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def cropped(picture: Image.Image, share: float, down: float, across: float) -> Image.Image:
    """A crop to a share of both sides, at a place from 0 to 1 in each direction."""
    width, height = round(picture.width * share), round(picture.height * share)
    left, top = round(across * (picture.width - width)), round(down * (picture.height - height))
    return picture.crop((left, top, left + width, top + height))


NEAR: dict[str, Callable[[Image.Image], Image.Image]] = {
    "centre crop to 80 %": lambda picture: cropped(picture, 0.8, 0.5, 0.5),
    "corner crop to 80 %": lambda picture: cropped(picture, 0.8, 0, 1),
    "crop to 80 %, off centre": lambda picture: cropped(picture, 0.8, 0.3, 0.8),
    "crop to 80 % of the area": lambda picture: cropped(picture, 0.894, 0.7, 0.2),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "quality 50": lambda picture: encoded(picture, 50),
    "darker by 20 %": lambda picture: ImageEnhance.Brightness(picture).enhance(0.8),
    "brighter by 20 %": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
}
"""Ways to make a near duplicate."""


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.05 * min(picture.size)))


def darkened(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(0.08)

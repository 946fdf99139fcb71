"""Blur of an image, without a reference (Crete et al. 2007): blurring it once more changes a blurred image little."""

# H W image

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image

LEAST_SIDE = 64
"""Shorter side in pixels below which blur is not measured."""
_SIDE = 128  # shorter side at which it is measured, as training sees it
_LENGTH = 9  # pixels of the mean that blurs: the paper's


def blur_of(picture: Image.Image) -> float | None:
    """Measure blur from 0 (sharp) to 1 (blurred) at a shorter side of up to 255 pixels; None for small and for blank images."""
    short = min(picture.size)
    if short < LEAST_SIDE:
        return None
    grey = picture.convert("L")
    if short >= 2 * _SIDE:
        grey = grey.reduce(short // _SIDE)
    pixels = np.asarray(grey, np.float32)
    measured = [one for one in (_blur_down(pixels), _blur_down(pixels.T)) if one is not None]
    return max(measured) if measured else None


def _blur_down(pixels: Float[np.ndarray, "H W"]) -> float | None:
    """Measure the share of the variation along columns that a mean over `_LENGTH` rows leaves."""
    half = _LENGTH // 2
    padded = np.pad(pixels, ((half + 1, half), (0, 0)), mode="edge").cumsum(0, dtype=np.float64)
    blurred = ((padded[_LENGTH:] - padded[:-_LENGTH]) / _LENGTH).astype(np.float32)
    before, after = np.abs(np.diff(pixels, axis=0)), np.abs(np.diff(blurred, axis=0))
    total = float(before.sum())
    return None if total < pixels.size * 0.1 else 1 - float(np.maximum(before - after, 0).sum()) / total

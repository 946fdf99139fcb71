"""Decoded images as the input of a graph: the evaluation view and its normalisation, computed as Pillow computes them.

The resize is Pillow's arithmetic in whole numbers (coefficients of 22 bits, and pixels rounded after each direction), written
in products of fp32 that are exact. So a runtime gives the pixels of `data.decode.eval_view`, where Pillow resizes across
first, as all versions before 13 do; Pillow 13 resizes some pictures down first, and their pixels differ by rounding.
"""

# B batch · C channels · H W decoded image · h w view · K classes

from __future__ import annotations

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vitrail.models.resampling import count_as_tensor, cubic_kernel, linear_kernel
from vitrail.settings import Preprocessing

_BITS = 2.0**22
"""Pillow's coefficients are whole numbers of this part (PRECISION_BITS in its Resample.c)."""
_HIGH = 2.0**11
"""Coefficients are divided in two parts, so that a sum of products with pixels fits into fp32's 24 bits."""


class RawImages(nn.Module):
    """A model of decoded images of any one size: resized, cropped and normalised in the graph."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", mean / std)

    def forward(self, images: UInt8[Tensor, "B H W C"]) -> Float[Tensor, "B K"]:
        """Return the logits."""
        pixels = view(images.permute(0, 3, 1, 2).float(), self.preprocessing)
        return self.model(pixels * self.scale - self.shift)


def view(images: Float[Tensor, "B C H W"], preprocessing: Preprocessing) -> Float[Tensor, "B C _h _w"]:
    """Return the evaluation view of whole levels 0 … 255, in whole levels: see `data.decode.eval_view`."""
    cubic, (height, width) = preprocessing.interpolation == "bicubic", preprocessing.img_size
    old_h, old_w = (count_as_tensor(side, dtype=torch.float64) for side in (images.shape[2], images.shape[3]))
    middle_h, middle_w = middle_size(old_h, old_w, preprocessing)
    down, across = (
        view_matrix(count, new, old, middle, cubic=cubic)
        for count, new, old, middle in (
            (images.shape[2], height, old_h, middle_h),
            (images.shape[3], width, old_w, middle_w),
        )
    )
    images = rounded(*(images @ part.T for part in parts(across)))  # (B, C, H, w)
    return rounded(*(part @ images for part in parts(down)))  # (B, C, h, w)


def middle_size(
    old_h: Float[Tensor, 1], old_w: Float[Tensor, 1], preprocessing: Preprocessing
) -> tuple[Float[Tensor, 1], Float[Tensor, 1]]:
    """Return the size of the resized image before the centre crop."""
    height, width = (torch.full_like(old_h, math.floor(side / preprocessing.crop_pct)) for side in preprocessing.img_size)
    if preprocessing.crop_mode == "squash":
        return height, width
    height_decides = height * old_w >= width * old_h
    wide = torch.maximum(width, torch.floor(height * old_w / old_h))
    tall = torch.maximum(height, torch.floor(width * old_h / old_w))
    return torch.where(height_decides, height, tall), torch.where(height_decides, wide, width)


def view_matrix(
    count: int, new: int, old: Float[Tensor, 1], middle: Float[Tensor, 1], *, cubic: bool
) -> Float[Tensor, "_new _old"]:
    """Return the coefficients of one side in whole parts of 2⁻²², as Pillow's `resize` with a box has them.

    `count` is the old size, `old` the same as a tensor, `middle` that of the whole resized image, `new` of the crop.
    """
    first = torch.round((middle - new) / 2)
    begin, end = (place * old / middle for place in (first, first + new))
    begin, span = begin.float(), (end.float() - begin.float()).double()  # as Pillow takes the box
    whole, rest = centres(begin.double(), span, new)  # (new,) each
    apart = (torch.arange(count, dtype=torch.float64)[None] - whole[:, None]) + (0.5 - rest[:, None])
    apart = apart / (span / new).clamp(min=1)
    weights = cubic_kernel(apart, -0.5) if cubic else linear_kernel(apart)
    weights = weights / weights.sum(1, keepdim=True) * _BITS
    return torch.where(weights < 0, torch.ceil(weights - 0.5), torch.floor(weights + 0.5))


def centres(begin: Float[Tensor, " 1"], span: Float[Tensor, " 1"], new: int) -> tuple[Float[Tensor, " _"], Float[Tensor, " _"]]:
    """Return begin + (i + ½) · span / new for each i, as a whole number and a rest of a few units.

    Products and whole numbers are exact in fp32 too, in which OpenVINO computes what is float64 here: a place among thousands
    of pixels would otherwise lose the digits that decide a coefficient. The rest of a coefficient has fp32's rounding there, so
    that some pixels in 10,000 are a level off.
    """
    steps = 2 * torch.arange(new, dtype=torch.float64) + 1
    coarse = torch.floor(span / 4) * 4
    quotient = torch.floor(steps * coarse / (2 * new))
    rest = (steps * coarse - quotient * (2 * new) + steps * (span - coarse)) / (2 * new)
    return quotient + torch.floor(begin), rest + (begin - torch.floor(begin))


def parts(coefficients: Float[Tensor, "_new _old"]) -> tuple[Float[Tensor, "_new _old"], Float[Tensor, "_new _old"]]:
    """Return whole numbers as high and low parts in fp32: high · 2¹¹ + low."""
    high = torch.floor(coefficients / _HIGH + 0.5)
    return high.float(), (coefficients - high * _HIGH).float()


def rounded(high: Float[Tensor, "*_"], low: Float[Tensor, "*_"]) -> Float[Tensor, "*_"]:
    """Return ⌊(high · 2¹¹ + low) / 2²² + ½⌋ between 0 and 255, exactly."""
    whole = torch.floor(high / _HIGH)  # of 2²²
    rest = (high - whole * _HIGH) * _HIGH + low + _BITS / 2
    return (whole + torch.floor(rest / _BITS)).clamp(0, 255)

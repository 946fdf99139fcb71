"""Colour operations on a batch, each sample with its own strength.

Pixels are floats from 0 to 255, and stay in that range. The operations are those of Pillow's ImageEnhance and ImageOps, as
torchvision's; unlike there, no rounding to whole levels takes place between operations. The number of channels is
free: the grey value of three channels is their luma (ITU-R BT.601), of any other number their mean.
"""

# B batch · C channels · H W image

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "B C H W"]
Strengths = Float[Tensor, " B"]
Operation = Callable[[Images, Strengths], Images]

_LUMA = (0.2989, 0.587, 0.114)
_BLUR_REACH = 6  # pixels each way: three standard deviations of the widest blur in use, sigma 2


def grey(images: Images) -> Float[Tensor, "B 1 H W"]:
    """Return the luma of RGB, or the mean of the channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def at_least(values: Tensor, least: Tensor | float) -> Tensor:
    """Return 1 where a value is at least `least`, else 0: weights to blend with, as `torch.where` is slow on a CPU."""
    return values.clone().ge_(least)


def _blend(base: Tensor, images: Images, factor: Strengths) -> Images:
    """Interpolate from `base` (factor 0) to the image (factor 1), or extrapolate; clip to 0 … 255."""
    return torch.lerp(base.expand_as(images), images, factor.view(-1, 1, 1, 1)).clamp_(0, 255)


def brightness(images: Images, factor: Strengths) -> Images:
    """Scale the brightness: factor 0 is black, 1 the image."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 255)


def contrast(images: Images, factor: Strengths) -> Images:
    """Scale the contrast around the image's mean grey: factor 0 is that grey, 1 the image."""
    return _blend(grey(images).mean((2, 3), keepdim=True), images, factor)


def saturation(images: Images, factor: Strengths) -> Images:
    """Scale the saturation: factor 0 is the grey image, 1 the image."""
    return _blend(grey(images), images, factor)


def hue(images: Images, shift: Strengths) -> Images:
    """Shift the hue by a share of the colour circle, from -0.5 to 0.5, in HSV; images that are not RGB are unchanged."""
    if images.shape[1] != 3:
        return images
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    chroma = value - low
    red, green, blue = images.split(1, dim=1)
    share = 1 / chroma.clamp(min=1e-6)  # the circle has six sectors, and grey, without chroma, none
    sector = 4 + (red - green) * share
    sector = torch.lerp(sector, 2 + (blue - red) * share, at_least(green, value))
    sector = torch.lerp(sector, (green - blue) * share, at_least(red, value)) + 6 * shift.view(-1, 1, 1, 1)
    starts = torch.arange(5, 0, -2, device=images.device, dtype=images.dtype).view(3, 1, 1)
    place = (starts + sector) % 6  # of red, green and blue (B, 3, H, W)
    return value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1)


def sharpness(images: Images, factor: Strengths) -> Images:
    """Scale the sharpness: factor 0 is the smoothed image, 1 the image, above 1 sharper. Border pixels are unchanged."""
    if min(images.shape[-2:]) < 3:
        return images
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]  # (B, C, H - 2, W - 2): sums of 3x3 pixels
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1].mul_(4).add_(around).mul_(1 / 13)
    return _blend(smooth, images, factor)


def posterize(images: Images, bits: Strengths) -> Images:
    """Keep the upper bits, 1 to 8, of each level."""
    step = torch.exp2(8 - bits).view(-1, 1, 1, 1)
    return torch.floor(images / step) * step


def solarize(images: Images, threshold: Strengths) -> Images:
    """Invert the levels at or above the threshold."""
    return torch.lerp(images, 255 - images, at_least(images, threshold.view(-1, 1, 1, 1)))


def solarize_add(images: Images, amount: Strengths) -> Images:
    """Add to the levels below 128."""
    dark = 1 - at_least(images, 128)
    return torch.addcmul(images, dark, amount.view(-1, 1, 1, 1)).clamp_(0, 255)


def invert(images: Images, _: Strengths) -> Images:
    """Invert each level: 255 minus the level."""
    return 255 - images


def autocontrast(images: Images, _: Strengths) -> Images:
    """Stretch each channel to 0 … 255; a constant channel is unchanged."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (images - low) * (255 / span.clamp(min=1e-6)), images)


def equalize(images: Images, _: Strengths) -> Images:
    """Equalise the histogram of each channel, as Pillow: level v becomes the share of pixels below it."""
    count, channels, height, width = images.shape
    levels = images.round().long().flatten(0, 1).flatten(1)  # (B·C, H·W)
    histogram = levels.new_zeros(len(levels), 256).scatter_add_(1, levels, torch.ones_like(levels))
    brightest = histogram.gather(1, levels.amax(1, keepdim=True))
    step = (height * width - brightest) // 255  # (B·C, 1)
    below = histogram.cumsum(1) - histogram
    table = torch.div(below + step // 2, step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    even = table.gather(1, levels).view(count, channels, height, width).to(images.dtype)
    return torch.where(step.view(count, channels, 1, 1) > 0, even, images)


def grayscale(images: Images, _: Strengths) -> Images:
    """Return the grey image in all channels."""
    return grey(images).expand_as(images)


def gaussian_blur(images: Images, sigma: Strengths) -> Images:
    """Gaussian blur with a standard deviation of up to 2 pixels; reflection padding."""
    for dim in (2, 3):
        reach = min(_BLUR_REACH, images.shape[dim] - 1)  # reflection padding is limited by the image
        images = _blur_along(images, sigma, reach=reach, dim=dim)
    return images


def _blur_along(images: Images, sigma: Strengths, *, reach: int, dim: int) -> Images:
    count, channels, height, width = images.shape
    place = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernels = torch.softmax(-0.5 * (place / sigma[:, None]).square(), dim=1)  # (B, taps), each summing to one
    kernels = kernels.repeat_interleave(channels, 0)[:, None, :, None]  # (B·C, 1, taps, 1)
    padding = (0, 0, reach, reach)
    if dim == 3:
        kernels, padding = kernels.transpose(2, 3), (reach, reach, 0, 0)
    padded = F.pad(images.flatten(0, 1)[None], padding, mode="reflect")  # (1, B·C, …): one group for each channel
    return F.conv2d(padded, kernels, groups=count * channels).view(count, channels, height, width)

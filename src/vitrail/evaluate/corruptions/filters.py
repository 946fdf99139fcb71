"""Filters that corruptions share: Gaussian blur, convolution, motion blur and magnification, with any padding."""

# B batch · C channels · H W image · k kernel

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Images = Float[Tensor, "B C H W"]
"""Pixels from 0 to 1."""
Edge = Literal["nearest", "reflect", "symmetric"]
"""Pixels beyond the image: the outermost one, the image mirrored at the centre of that one, or at its outer edge."""


def edge_index(side: int, reach: int, edge: Edge, device: torch.device) -> Int64[Tensor, " _"]:
    """Return the pixel that stands at each of -reach … side + reach - 1; the reach may be larger than the image."""
    place = torch.arange(-reach, side + reach, device=device)
    if edge == "nearest":
        return place.clamp(0, side - 1)
    period = 2 * side if edge == "symmetric" else max(1, 2 * side - 2)
    place = place % period
    return torch.minimum(place, period - place - int(edge == "symmetric"))


def padded(images: Images, reach: int, *, edge: Edge) -> Float[Tensor, "B C _H _W"]:
    """Pad all four sides by `reach` pixels."""
    rows, columns = (edge_index(side, reach, edge, images.device) for side in images.shape[2:])
    return images.index_select(2, rows).index_select(3, columns)


def convolve(images: Images, kernel: Float[Tensor, "k k"], *, edge: Edge = "reflect") -> Images:
    """Correlate every channel with one kernel of odd size."""
    around = padded(images, len(kernel) // 2, edge=edge)
    return F.conv2d(around.flatten(0, 1)[:, None], kernel[None, None].to(images)).view_as(images)


def gaussian_weights(sigma: float, reach: int) -> Float[Tensor, " k"]:
    """Return a sampled Gaussian on -reach … reach whose sum is 1."""
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return torch.softmax(-0.5 * (place / sigma).square(), dim=0).float()


def gaussian_filter(images: Images, sigma: float, *, truncate: float = 4.0, edge: Edge = "nearest") -> Images:
    """Gaussian blur, whose kernel ends at `truncate` standard deviations, as scipy's; unchanged for less than a pixel."""
    reach = int(truncate * sigma + 0.5)
    if not reach:
        return images
    weights = gaussian_weights(sigma, reach).to(images)
    around = padded(images, reach, edge=edge).flatten(0, 1)[:, None]  # (B·C, 1, H + 2 reach, W + 2 reach)
    return F.conv2d(F.conv2d(around, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).view_as(images)


def disc(radius: float, *, blur: float) -> Float[Tensor, "k k"]:
    """Return a disc whose edge is smoothed by a Gaussian of 3x3 pixels, or of 5x5 from a radius of more than 8 on."""
    reach, soft = math.ceil(radius), 1 if radius <= 8 else 2
    place = torch.arange(-reach - soft, reach + soft + 1, dtype=torch.float32)
    kernel = (place[:, None].square() + place.square() <= radius**2).float()
    weights = gaussian_weights(blur, soft)
    kernel = F.conv2d(kernel[None, None] / kernel.sum(), weights.outer(weights)[None, None], padding=soft)[0, 0]
    return kernel / kernel.sum()


def motion_filter(images: Images, *, radius: int, sigma: float, degrees: Float[Tensor, " B"]) -> Images:
    """Average of the image moved by 0 … 2 radius whole pixels in a direction of its own, with half a Gaussian as weights.

    What moves in from outside is the outermost row or column.
    """
    count, channels, height, width = images.shape
    steps = torch.arange(2 * radius + 1, device=images.device)
    weights = torch.softmax(-0.5 * (steps / sigma).square(), dim=0)
    angle = torch.deg2rad(degrees)[:, None]
    down, across = (torch.ceil(steps * part - 0.5).long() for part in (angle.sin(), angle.cos()))  # (B, 2 radius + 1)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    flat, blurred = images.flatten(2), torch.zeros_like(images).flatten(2)
    for step, weight in enumerate(weights.tolist()):
        y = (rows + down[:, step, None]).clamp(0, height - 1)  # (B, H)
        x = (columns + across[:, step, None]).clamp(0, width - 1)
        place = (y[:, :, None] * width + x[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
        blurred.add_(flat.gather(2, place), alpha=weight)
    return blurred.view_as(images)


def magnify(images: Images, factor: float) -> Float[Tensor, "B C _H _W"]:
    """Enlarge the centre of the images bilinearly by a factor of at least 1; the result is up to a factor larger than they."""
    crop = [math.ceil(side / factor) for side in images.shape[2:]]
    top, left = ((side - part) // 2 for side, part in zip(images.shape[2:], crop, strict=True))
    centre = images[:, :, top : top + crop[0], left : left + crop[1]]
    size = [round(part * factor) for part in crop]
    return F.interpolate(centre, size, mode="bilinear", align_corners=True)

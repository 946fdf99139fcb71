"""Weather: snow, frost, fog and brightness."""

# B batch · C channels · H W image · S side of a square

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.data.color import grey
from vitrail.data.draws import Draws
from vitrail.evaluate.corruptions.filters import Images, magnify, motion_filter

FROST_LEVEL, FROST_CONTRAST = (0.43, 0.80), 0.11
"""Range of a frost texture's mean, and its standard deviation."""
FROST_TINT = (-0.055, 0.0, 0.04)
"""What red, green and blue of frost have more than its grey value."""


def snow(
    images: Images,
    draws: Draws,
    *,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> Images:
    """Whiten the image, and add flakes in two opposite directions: enlarged noise above a threshold, blurred by its motion."""
    height, width = images.shape[2:]
    noise = mean + deviation * draws.normal("snow", height * width).view(-1, 1, height, width)
    flakes = magnify(noise, max(1.0, zoom))
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    degrees = 90 * draws.uniform("snow direction")[:, 0] - 135
    flakes = motion_filter(flakes, radius=round(radius), sigma=sigma, degrees=degrees)
    flakes = (flakes * 255).round()[:, :, :height, :width] / 255
    whitened = keep * images + (1 - keep) * torch.maximum(images, grey(images) * 1.5 + 0.5)
    return whitened + flakes + flakes.flip(2, 3)


def frost(images: Images, draws: Draws, *, keep: float, amount: float) -> Images:
    """Add a texture of frost to a darker image."""
    _, channels, height, width = images.shape
    return keep * images + amount * frost_texture(draws, height=height, width=width, channels=channels)


def frost_texture(draws: Draws, *, height: int, width: int, channels: int) -> Float[Tensor, "B C H W"]:
    """Draw frost, from 0 to 1: fibres along a turning direction, and ridges between cells, both on coarse patches.

    It takes the place of the photographs that the published images were made with. Fibres are noise averaged along the
    direction (line integral convolution: Cabral and Leedom 1993), ridges are folded noise of several scales (Musgrave 1994).
    Mean and contrast are in the range of those photographs; grey images have no tint.
    """
    side = min(height, width)

    def noise(name: str, cells: float) -> Tensor:
        """Noise of about `cells` cells in the short side: (B, 1, H, W), from 0 to 1."""
        size = [max(2, round(cells * part / side) + 1) for part in (height, width)]
        lattice = draws.uniform(f"frost {name}", size[0] * size[1]).view(-1, 1, *size)
        return F.interpolate(lattice, (height, width), mode="bicubic", align_corners=True).clamp(0, 1)

    direction = 2 * math.pi * (noise("direction", 3) + draws.uniform("frost turn")[:, :, None, None])
    along = torch.cat((direction.cos() / width, direction.sin() / height), dim=1).movedim(1, -1)  # (B, H, W, 2), one pixel
    base = F.affine_grid(torch.eye(2, 3, device=along.device)[None], [1, 1, height, width], align_corners=False)
    grain = noise("grain", side / 2)
    steps = torch.linspace(-0.08, 0.08, 13) * side  # pixels along the direction
    fibres = sum(
        F.grid_sample(grain, base + 2 * step * along, padding_mode="reflection", align_corners=False) for step in steps.tolist()
    )
    assert isinstance(fibres, Tensor)
    ridges = torch.zeros_like(grain)
    for octave in range(4):
        folded = 1 - (2 * noise(f"ridges {octave}", min(side / 2, 5 * 2**octave)) - 1).abs()
        ridges = ridges + 0.6**octave * folded.square()
    texture = standardised(fibres) + standardised(ridges) + 0.8 * standardised(noise("patches", 4))
    low, high = FROST_LEVEL
    level = low + (high - low) * draws.uniform("frost level")[:, :, None, None]
    tint = torch.tensor(FROST_TINT if channels == 3 else (0.0,), device=texture.device).view(1, -1, 1, 1)
    return (level + FROST_CONTRAST * standardised(texture) + tint).clamp(0, 1).expand(-1, channels, -1, -1)


def standardised(values: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """Scale each image to mean 0 and deviation 1."""
    centred = values - values.mean((2, 3), keepdim=True)
    return centred / centred.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-6)


def fog(images: Images, draws: Draws, *, amount: float, decay: float) -> Images:
    """Add a cloud, and scale the sum to the brightest value of the image."""
    height, width = images.shape[2:]
    brightest = images.amax((1, 2, 3), keepdim=True)
    cloud = plasma(draws, side=1 << (max(height, width) - 1).bit_length(), decay=decay)
    foggy = images + amount * cloud[:, None, :height, :width]
    return foggy * brightest / (brightest + amount)


def plasma(draws: Draws, *, side: int, decay: float) -> Float[Tensor, "B S S"]:
    """Draw a cloud, from 0 to 1, by the diamond-square algorithm on a torus (Fournier, Fussell and Carpenter 1982).

    The side is a power of 2; the noise of each scale is that of the next coarser one over the square of `decay`.
    """
    cloud = torch.zeros(len(draws), side, side, device=draws.device)
    step, amplitude = side, 100.0

    def around(total: Tensor, name: str) -> Tensor:
        noise = 2 * draws.uniform(f"fog {name} {step}", total[0].numel()).view_as(total) - 1
        return total / 4 + amplitude**2 * noise

    while step >= 2:
        half = step // 2
        corners = cloud[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        cloud[:, half::step, half::step] = around(total + total.roll(-1, 2), "centre")
        centres, corners = cloud[:, half::step, half::step], cloud[:, ::step, ::step]
        cloud[:, ::step, half::step] = around(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2), "row")
        cloud[:, half::step, ::step] = around(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1), "column")
        step, amplitude = half, amplitude / decay
    cloud = cloud - cloud.amin((1, 2), keepdim=True)
    return cloud / cloud.amax((1, 2), keepdim=True).clamp(min=1e-12)


def brightness(images: Images, draws: Draws, *, amount: float) -> Images:
    """Add to the value of HSV, at the same hue and saturation; to every channel of images that are not RGB."""
    if images.shape[1] != 3:
        return images + amount
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-6)), brighter)

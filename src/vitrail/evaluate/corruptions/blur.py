"""Blur: defocus, frosted glass, motion and zoom."""

# B batch · C channels · H W image

from __future__ import annotations

import torch

from vitrail.data.draws import Draws
from vitrail.evaluate.corruptions.filters import Images, convolve, disc, gaussian_filter, magnify, motion_filter


def defocus_blur(images: Images, draws: Draws, *, radius: float, blur: float) -> Images:
    """Convolve with a disc."""
    return convolve(images, disc(radius, blur=blur))


def glass_blur(images: Images, draws: Draws, *, sigma: float, reach: float, rounds: int) -> Images:
    """Blur, move pixels by up to `reach` pixels, and blur again."""
    levels = (gaussian_filter(images, sigma) * 255 + 1e-3).floor() / 255
    return gaussian_filter(move_pixels(levels, draws, reach=max(1, round(reach)), rounds=rounds), sigma)


def move_pixels(images: Images, draws: Draws, *, reach: int, rounds: int) -> Images:
    """Overwrite pixels, from the lower right to the upper left, each with one of those around it as it is at that moment.

    The published images were made so: their code exchanges two views of an array, after which both pixels have the value of
    the second. A pixel whose source was overwritten before it takes what that one took: these chains are followed for all
    pixels at once, by doubling.
    """
    count, channels, height, width = images.shape
    rows, columns = (
        torch.arange(max(side - reach, reach), reach, -1, device=images.device) for side in (height, width)
    )  # none in a small image
    here = (rows[:, None] * width + columns).flatten()  # in the order in which they are overwritten
    turn_of = torch.full((height * width,), len(here), device=images.device)
    turn_of[here] = torch.arange(len(here), device=images.device)  # len(here): never
    flat = images.flatten(2)
    for number in range(rounds if len(here) else 0):
        moves = draws.integers(f"glass blur {number}", high=2 * reach, n=2 * len(here)).view(count, -1, 2) - reach
        source = torch.arange(height * width, device=images.device).repeat(count, 1)  # (B, H·W)
        source[:, here] = here + moves[:, :, 1] * width + moves[:, :, 0]
        chained = turn_of[source] < turn_of
        while bool(chained.any()):
            further, still = source.gather(1, source), chained & chained.gather(1, source)
            source, chained = torch.where(chained, further, source), still
        flat = flat.gather(2, source[:, None].expand(-1, channels, -1))
    return flat.view_as(images)


def motion_blur(images: Images, draws: Draws, *, radius: float, sigma: float) -> Images:
    """Blur in a direction of -45 to 45 degrees."""
    degrees = 90 * draws.uniform("motion blur")[:, 0] - 45
    return motion_filter(images, radius=round(radius), sigma=sigma, degrees=degrees)


def zoom_blur(images: Images, draws: Draws, *, most: float, step: float) -> Images:
    """Average of the image and of its magnifications from 1 to `most`, in steps."""
    height, width = images.shape[2:]
    steps = round((most - 1) / step)
    total = images.clone()
    for number in range(steps + 1):
        total += magnify(images, 1 + number * step)[:, :, :height, :width]
    return total / (steps + 2)

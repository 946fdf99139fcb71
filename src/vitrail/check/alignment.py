"""Close comparison of two images: a window of one is aligned with the whole of the other, to fractions of a pixel.

The correlation of the aligned luminance is maximised over position and size of the window by Gauss-Newton steps, as in
Lucas & Kanade 1981 and Evangelidis & Psarakis 2008 (ECC). Both sides are averaged over the same cells, so that a crop, which
was resampled, is compared at a resolution that both have.
"""

# P pairs · S side of a thumbnail · G cells along a side of the grid

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vitrail.check.windows import FLIPS, WINDOWS

GRID = 20
"""Cells along a side at which two images are compared."""
_SAMPLES = 2  # samples along a side of a cell
_STEPS = 5
_LARGEST_MOVE = 0.1
_SIDE_RANGE = (math.log(0.72), math.log(1.04))  # least and greatest side of a window
_CENTRE_RANGE = (0.34, 0.66)
_SMALL = 1e-6


@dataclass(frozen=True, eq=False)
class Aligned:
    """Result of the comparison of pairs (image with a window, whole other image)."""

    residual: Float[Tensor, " P"]
    """1 - correlation of the aligned luminance."""
    gain: Float[Tensor, " P"]
    """Contrast of the other image relative to the window's."""
    offset: Float[Tensor, " P"]
    """Brightness that the other image has beyond `gain` times the window's, from 0 to 255."""
    windows: Float[Tensor, "P 4"]
    """Centre (down, across) and logarithm of height and width of the aligned window, in shares of the image."""


def align(
    images: UInt8[Tensor, "P S S"],
    others: UInt8[Tensor, "P S S"],
    windows: Int64[Tensor, " P"],
    flips: Int64[Tensor, " P"],
) -> Aligned:
    """Align a window of each image, near the one of that number in `WINDOWS`, with the other image, flipped by `FLIPS`."""
    starts = [[w.top + w.height / 2, w.left + w.width / 2, math.log(w.height), math.log(w.width)] for w in WINDOWS]
    start = torch.tensor(starts)[windows]
    whole = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(len(others), 4)
    raw = _sample(flip(others.float()[:, None], flips)[:, 0], whole)
    target, _ = _normalised(raw)
    pixels, position = images.float(), start
    best, best_at = torch.full((len(images),), -2.0), start
    for step in range(_STEPS + 1):
        window, _ = _normalised(_sample(pixels, position))
        correlation = (window * target).sum((1, 2))
        better = correlation > best
        best, best_at = torch.where(better, correlation, best), torch.where(better[:, None], position, best_at)
        if step < _STEPS:
            position = _clamped(_moved(position, window, target))
    seen = _sample(pixels, best_at)
    gain = raw.std((1, 2)) / seen.std((1, 2)).clamp_min(1e-3)
    return Aligned((1 - best).clamp_min(0), gain, raw.mean((1, 2)) - gain * seen.mean((1, 2)), best_at)


def flip(images: Float[Tensor, "P C s s"], flips: Int64[Tensor, " P"]) -> Float[Tensor, "P C s s"]:
    """Flip each image by its number in `FLIPS`."""
    flipped = images.clone()
    for number, (down, across) in enumerate(FLIPS):
        axes = [axis for axis, turned in ((-2, down), (-1, across)) if turned]
        if axes:
            flipped[flips == number] = images[flips == number].flip(axes)
    return flipped


def sample_windows(images: Float[Tensor, "P C s s"], windows: Float[Tensor, "P 4"], cells: int) -> Float[Tensor, "P C c c"]:
    """Sample windows (centre, logarithm of sides) at the centres of cells x cells cells, bilinearly."""
    at = (torch.arange(cells) + 0.5) / cells - 0.5
    down = 2 * (windows[:, :1] + windows[:, 2:3].exp() * at) - 1  # (P, c), from -1 to 1
    across = 2 * (windows[:, 1:2] + windows[:, 3:].exp() * at) - 1
    grid = torch.stack([across[:, None, :].expand(-1, cells, -1), down[:, :, None].expand(-1, -1, cells)], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sample(images: Float[Tensor, "P S S"], windows: Float[Tensor, "P 4"]) -> Float[Tensor, "P G G"]:
    return F.avg_pool2d(sample_windows(images[:, None], windows, _SAMPLES * GRID), _SAMPLES)[:, 0]


def _normalised(values: Float[Tensor, "P G G"]) -> tuple[Float[Tensor, "P G G"], Float[Tensor, "P 1 1"]]:
    centred = values - values.mean((1, 2), keepdim=True)
    norm = centred.flatten(1).norm(dim=1)[:, None, None].clamp_min(_SMALL)
    return centred / norm, norm


def _moved(
    position: Float[Tensor, "P 4"], window: Float[Tensor, "P G G"], target: Float[Tensor, "P G G"]
) -> Float[Tensor, "P 4"]:
    """Take a Gauss-Newton step over centre, sides, brightness and contrast."""
    padded = F.pad(window[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (GRID / 2)  # derivatives by a move of one window side
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (GRID / 2)
    at = ((torch.arange(GRID) + 0.5) / GRID - 0.5)[:, None]
    jacobian = torch.stack([down, across, down * at, across * at.T, torch.ones_like(window), window], dim=1).flatten(2)
    normal = jacobian @ jacobian.transpose(1, 2)  # (P, 6, 6)
    damped = normal + 1e-3 * torch.diag_embed(normal.diagonal(dim1=1, dim2=2)) + 1e-9 * torch.eye(normal.shape[1])
    step = torch.linalg.solve(damped, jacobian @ (target - window).flatten(1)[:, :, None])[:, :4, 0]
    step = step.clamp(-_LARGEST_MOVE, _LARGEST_MOVE)
    return position + step * torch.cat([position[:, 2:].exp(), torch.ones_like(position[:, 2:])], dim=1)


def _clamped(position: Float[Tensor, "P 4"]) -> Float[Tensor, "P 4"]:
    return torch.cat([position[:, :2].clamp(*_CENTRE_RANGE), position[:, 2:].clamp(*_SIDE_RANGE)], dim=1)

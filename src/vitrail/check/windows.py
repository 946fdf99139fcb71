"""Descriptors of an image and of its windows: low frequencies of the luminance, by which crops and flips are looked up.

An image that was cropped is, as a whole, a window of the other image. So the descriptor of every image is looked up with the
descriptors of all windows of every image. A flip changes the sign of the odd frequencies, so that four sign patterns stand for
all flips.
"""

# N images · S side of a thumbnail · W windows · F flips · K frequencies along a side · D = K² - 1 numbers of a descriptor

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

FREQUENCIES = 7
"""Frequencies along each side of an image: 48 numbers are the fewest that find crops of Fashion-MNIST (dev/LOG.md)."""
STEP = 1 / 30
"""Step between windows as a share of the side: about a pixel of the smallest images, 28 px."""
SIDES = (0.9, 0.8)
"""Sides of the windows as a share of the image's."""
FLIPS = ((False, False), (False, True), (True, False), (True, True))
"""Flips (upside down, left to right), by number."""
_CELLS = 16  # cells along a side of a window, from which its frequencies are computed


class Window(NamedTuple):
    """Part of an image, in shares of its height and width."""

    top: float
    left: float
    height: float
    width: float


def _offsets(side: float) -> Iterable[float]:
    return np.linspace(0, 1 - side, round((1 - side) / STEP) + 1).tolist()


WINDOWS: tuple[Window, ...] = (
    Window(0, 0, 1, 1),
    *(Window(top, left, side, side) for side in SIDES for top in _offsets(side) for left in _offsets(side)),
    *(Window(top, 0, SIDES[-1], 1) for top in _offsets(SIDES[-1])),
    *(Window(0, left, 1, SIDES[-1]) for left in _offsets(SIDES[-1])),
)
"""The whole image, square crops to 90 and 80 % of both sides, and crops to 80 % of one side."""


@dataclass(frozen=True, eq=False)
class Describer:
    """Descriptors of thumbnails, scaled so that each frequency varies equally over the set."""

    scale: Float[Tensor, " D"]
    """Standard deviation of each frequency over the normalised images."""

    @classmethod
    def fit(cls, thumbnails: UInt8[Tensor, "N S S"]) -> Describer:
        """Measure the scale on a set."""
        whole = torch.cat([_frequencies(part, WINDOWS[:1])[:, 0] for part in thumbnails.split(8192)])
        return cls(F.normalize(whole, dim=1).std(0, unbiased=False).clamp_min(1e-3))

    def describe(self, thumbnails: UInt8[Tensor, "N S S"], windows: tuple[Window, ...] = WINDOWS) -> Float[Tensor, "N W D"]:
        """Compute descriptors of unit length of some windows."""
        return F.normalize(_frequencies(thumbnails, windows) / self.scale, dim=2)


def flip_signs() -> Float[Tensor, "F D"]:
    """Return the factors that turn the descriptor of an image into that of each of `FLIPS` of it."""
    odd = (-1.0) ** torch.arange(FREQUENCIES)
    even = torch.ones(FREQUENCIES)
    rows = [torch.outer(odd if down else even, odd if across else even) for down, across in FLIPS]
    return torch.stack(rows).flatten(1)[:, 1:]


def _frequencies(thumbnails: UInt8[Tensor, "N S S"], windows: tuple[Window, ...]) -> Float[Tensor, "N W D"]:
    """Compute the lowest frequencies of a cosine transform of each window, without the mean."""
    side, values = thumbnails.shape[-1], thumbnails.float()
    rows = [_window_basis(side, window.top, window.height) @ values for window in windows]  # (N, K, S) each
    columns = [_window_basis(side, window.left, window.width).T for window in windows]
    return torch.stack([(row @ column).flatten(1)[:, 1:] for row, column in zip(rows, columns, strict=True)], dim=1)


def _window_basis(side: int, start: float, share: float) -> Float[Tensor, "K S"]:
    """Return the matrix from the pixels along a side to the frequencies of a window of it."""
    edges = side * (start + share * np.arange(_CELLS + 1) / _CELLS)
    low, high = np.maximum(edges[:-1, None], np.arange(side)), np.minimum(edges[1:, None], np.arange(1, side + 1))
    means = np.maximum(high - low, 0) / (edges[1] - edges[0])  # (cells, S): mean of the pixels of each cell
    angles = np.pi * np.arange(FREQUENCIES)[:, None] * (np.arange(_CELLS) + 0.5) / _CELLS
    cosines = math.sqrt(2 / _CELLS) * np.cos(angles)
    cosines[0] /= math.sqrt(2)
    return torch.from_numpy((cosines @ means).astype(np.float32))

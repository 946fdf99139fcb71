"""Near duplicates: the same picture cropped, flipped, encoded again or made brighter.

A pair is a near duplicate if the two images are much more like each other than like any third one. The measure is the residual
1 - correlation after alignment. Its size alone decides nothing: two shirts of Fashion-MNIST differ by less than a photograph
and its crop. So each image's candidates are sorted by their residual, and those before a jump are its duplicates.
"""

# N images · S side of a thumbnail · P pairs · M candidates · L neighbours

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vitrail.check.alignment import align, flip, sample_windows
from vitrail.check.inverted_index import Candidates, find_candidates
from vitrail.check.jumps import before_jump
from vitrail.check.windows import FLIPS

LARGEST = 0.12
"""Residual beyond which nothing is a duplicate."""
UNRELATED = 0.1
"""Residual of the next image, where there is none to compare with."""
GAIN = (0.6, 1.67)
"""Least and greatest ratio of the contrasts of two duplicates."""
OFFSET = 64.0
"""Greatest difference of their brightness beyond that ratio, of 255."""
COLOUR = 12.0
"""Greatest root mean square difference of their colours, of 255, on a grid of 4 x 4 cells."""
FLAT = 2.0
"""Standard deviation of the luminance (of 255) below which an image shows nothing that could be compared."""
_GREY = 3.0  # colour difference below which an image is grey: a grey copy of a colour image is a duplicate
_COLOUR_CELLS = 4  # along a side: coarse, as the cells of a window are not those of the other image
_CHUNK = 4096
_SHOWN = 20_000  # images from which on a bar shows how far it is


class NearPair(NamedTuple):
    """Two images that show the same picture."""

    first: int
    second: int
    residual: float
    """1 - correlation of the luminance after alignment."""
    how: str
    """Difference in words, such as "mirrored, cropped to 80 x 80 %"; empty if it is small."""
    sure: bool = True
    """False where another measure should confirm it."""


@dataclass(frozen=True, eq=False)
class _Compared:
    """Pairs of images, with the smallest residual of each pair."""

    first: Int64[np.ndarray, " P"]
    second: Int64[np.ndarray, " P"]
    residual: Float[np.ndarray, " P"]
    alike: Bool[np.ndarray, " P"]
    """True where contrast, brightness and colours are nearly the same."""
    flips: Int64[np.ndarray, " P"]
    gain: Float[np.ndarray, " P"]
    sides: Float[np.ndarray, "P 2"]
    """Height and width of the aligned window."""


def find_near_duplicates(luminance: UInt8[np.ndarray, "N S S"], colour: Int[np.ndarray, "N 2 c c"]) -> list[NearPair]:
    """Find pairs of near duplicates by thumbnails: luminance, and two colour differences (from -127 to 127).

    Pairs that are not sure are among them, from small to large residuals.
    """
    shown = np.flatnonzero(luminance.std((1, 2)) >= FLAT)
    if len(shown) < 2:
        return []
    thumbnails, colours = torch.from_numpy(luminance[shown]), torch.from_numpy(colour[shown])
    compared = _compare(thumbnails, colours, find_candidates(thumbnails))
    jumps = before_jump(
        compared.first, compared.second, compared.residual, images=len(shown), largest=LARGEST, unrelated=UNRELATED
    )
    kept = jumps.possible & compared.alike
    pairs = [
        NearPair(
            int(shown[compared.first[at]]),
            int(shown[compared.second[at]]),
            float(compared.residual[at]),
            _how(compared, at),
            bool(jumps.sure[at]),
        )
        for at in np.flatnonzero(kept).tolist()
    ]
    return sorted(pairs, key=lambda pair: pair.residual)


def _compare(thumbnails: UInt8[Tensor, "N S S"], colours: Int[Tensor, "N 2 c c"], candidates: Candidates) -> _Compared:
    """Align every image with its candidates; of the two comparisons of a pair, keep the one with the smaller residual."""
    image, rank = (candidates.images >= 0).nonzero(as_tuple=True)
    other = candidates.images[image, rank]
    window, turned = candidates.windows[image, rank], candidates.flips[image, rank]
    parts: list[tuple[Tensor, ...]] = []
    console = Console(stderr=True)
    hidden = not console.is_terminal or len(thumbnails) < _SHOWN
    chunks = list(zip(*(values.split(_CHUNK) for values in (image, other, window, turned)), strict=True))
    for i, j, w, f in track(chunks, "comparing similar images", console=console, transient=True, disable=hidden):
        aligned = align(thumbnails[i], thumbnails[j], w, f)
        differs = _colour_difference(colours[i], colours[j], aligned.windows, f, aligned.gain)
        even = (aligned.gain > GAIN[0]) & (aligned.gain < GAIN[1]) & (aligned.offset.abs() < OFFSET) & (differs < COLOUR)
        parts.append((aligned.residual, even, aligned.gain, aligned.windows[:, 2:].exp()))
    residual, alike, gain, sides = [torch.cat(values).numpy() for values in zip(*parts, strict=True)]
    low, high, flips = torch.minimum(image, other).numpy(), torch.maximum(image, other).numpy(), turned.numpy()
    order = np.lexsort((residual, ~alike, high, low))
    _, unique = np.unique(low[order] * len(thumbnails) + high[order], return_index=True)
    at = order[unique]
    return _Compared(low[at], high[at], residual[at], alike[at], flips[at], gain[at], sides[at])


def _colour_difference(
    ours: Int[Tensor, "P 2 c c"],
    theirs: Int[Tensor, "P 2 c c"],
    windows: Float[Tensor, "P 4"],
    flips: Int64[Tensor, " P"],
    gain: Float[Tensor, " P"],
) -> Float[Tensor, " P"]:
    """Root mean square difference of the colours of a window and the other image; 0 where one of the two is grey."""
    side = ours.shape[-1]
    window = F.avg_pool2d(sample_windows(ours.float(), windows, side), side // _COLOUR_CELLS) * gain[:, None, None, None]
    other = F.avg_pool2d(flip(theirs.float(), flips), side // _COLOUR_CELLS)
    grey = (window.abs().amax((1, 2, 3)) < _GREY) | (other.abs().amax((1, 2, 3)) < _GREY)
    return (window - other).square().mean((1, 2, 3)).sqrt().masked_fill(grey, 0.0)


def _how(compared: _Compared, at: int) -> str:
    """Describe the difference of two duplicates."""
    down, across = FLIPS[compared.flips[at]]
    height, width = np.minimum(compared.sides[at], 1)
    words = ["turned by 180 degrees" if down and across else "upside down" if down else "mirrored" if across else ""]
    words += [f"cropped to {100 * height:.0f} x {100 * width:.0f} %" if min(height, width) < 0.97 else ""]
    words += [f"contrast x {compared.gain[at]:.2f}" if not 0.93 < compared.gain[at] < 1.07 else ""]
    return ", ".join(word for word in words if word)

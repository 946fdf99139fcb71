"""Search for similar images: descriptors in cells around centroids (an inverted file), of which each query looks into a few.

Q queries among R rows of D numbers in √R cells take time Q · √R · (1 + probes) · D, and memory R · D beside that of a block of
images.
"""

# N images · W windows · F flips · D descriptor · R = N · F rows · C cells · Q queries · M candidates

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vitrail.check.windows import FLIPS, WINDOWS, Describer, flip_signs

CANDIDATES = 10
"""Images that are compared closely with each image."""
PROBES = 4
"""Cells that each query looks into."""
_PER_CELL = 2  # rows of a cell that a query keeps
_CELLS = 2**24  # similarities at once: 64 MiB
_BLOCK = 1024  # images whose windows are looked up at once
_SHOWN = 20_000  # images from which on a bar shows how far it is
_ROUNDS = 6
_SAMPLE = 40  # rows a cell from which the centroids are computed


@dataclass(frozen=True, eq=False)
class Candidates:
    """Most similar images of each image."""

    images: Int64[Tensor, "N M"]
    """The other image, which as a whole resembles a window of this one; -1 where there are fewer."""
    windows: Int64[Tensor, "N M"]
    """Number of that window in `WINDOWS`."""
    flips: Int64[Tensor, "N M"]
    """Number in `FLIPS` of the flip of the other image."""


def find_candidates(thumbnails: UInt8[Tensor, "N S S"], *, count: int = CANDIDATES, probes: int = PROBES) -> Candidates:
    """Find the `count` images that most resemble a window of each image, flipped or not."""
    describer = Describer.fit(thumbnails)
    whole = torch.cat([describer.describe(part, WINDOWS[:1])[:, 0] for part in thumbnails.split(8192)])  # (N, D)
    rows = (whole[:, None] * flip_signs()).flatten(0, 1)  # (R, D)
    cells = _Cells.of(rows)
    console, parts = Console(stderr=True), list(thumbnails.split(_BLOCK))
    hidden = not console.is_terminal or len(thumbnails) < _SHOWN
    found = [
        _search_block(describer.describe(part), rows, cells, first=first * _BLOCK, count=count, probes=probes)
        for first, part in enumerate(track(parts, "similar images", console=console, transient=True, disable=hidden))
    ]
    return Candidates(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@dataclass(frozen=True, eq=False)
class _Cells:
    """Rows grouped by their nearest centroid."""

    centroids: Float[Tensor, "C D"]
    members: tuple[Int64[Tensor, " _n"], ...]

    @classmethod
    def of(cls, rows: Float[Tensor, "R D"]) -> _Cells:
        """Group rows by spherical k-means on a sample of them."""
        count = max(1, math.isqrt(len(rows)))
        draw = torch.Generator().manual_seed(0)
        sample = rows[torch.randperm(len(rows), generator=draw)[: count * _SAMPLE]]
        centroids = sample[:count].clone()
        for _ in range(_ROUNDS):
            nearest = (sample @ centroids.T).argmax(1)
            sums = torch.zeros_like(centroids).index_add_(0, nearest, sample)
            centroids = F.normalize(sums + 1e-6 * centroids, dim=1)
        cell = torch.cat([(part @ centroids.T).argmax(1) for part in rows.split(65536)])
        order = cell.argsort()
        return cls(centroids, order.split(cell.bincount(minlength=count).tolist()))


def _search_block(
    queries: Float[Tensor, "n W D"], rows: Float[Tensor, "R D"], cells: _Cells, *, first: int, count: int, probes: int
) -> tuple[Int64[Tensor, "n M"], Int64[Tensor, "n M"], Int64[Tensor, "n M"]]:
    """Return the images, windows and flips of the best candidates of the images from `first` on."""
    images, windows = queries.shape[:2]
    flat = queries.flatten(0, 1)
    probed = (flat @ cells.centroids.T).topk(min(probes, len(cells.members)), dim=1).indices  # (n W, probes)
    own = first + torch.arange(len(flat)) // windows
    scores = torch.full((probed.numel(), _PER_CELL), -2.0)
    found = torch.full((probed.numel(), _PER_CELL), -1)
    order = probed.flatten().argsort()
    by_cell = order.split(probed.flatten().bincount(minlength=len(cells.members)).tolist())
    for members, all_places in zip(cells.members, by_cell, strict=True):
        if not len(members):
            continue
        known, images_of = rows[members], members // len(FLIPS)
        for places in all_places.split(max(1, _CELLS // len(members))):
            query = places // probed.shape[1]
            similarity = flat[query] @ known.T
            similarity.masked_fill_(own[query][:, None] == images_of[None], -2.0)
            best = similarity.topk(min(_PER_CELL, len(members)), dim=1)
            scores[places, : best.values.shape[1]] = best.values
            found[places, : best.values.shape[1]] = torch.where(best.values > -2, members[best.indices], -1)
    return _best_of_each(scores.view(images, -1), found.view(images, -1), probed.shape[1] * _PER_CELL, count)


def _best_of_each(
    scores: Float[Tensor, "n L"], rows: Int64[Tensor, "n L"], per_window: int, count: int
) -> tuple[Int64[Tensor, "n M"], Int64[Tensor, "n M"], Int64[Tensor, "n M"]]:
    """Keep the best row of each image, then the best images."""
    ranked = scores.sort(dim=1, descending=True)
    image = torch.where(ranked.values > -2, rows.gather(1, ranked.indices) // len(FLIPS), -1)
    grouped, back = image.sort(dim=1, stable=True)
    repeated = torch.zeros_like(grouped, dtype=torch.bool)
    repeated[:, 1:] = grouped[:, 1:] == grouped[:, :-1]
    kept = ranked.values.masked_fill(torch.zeros_like(repeated).scatter(1, back, repeated) | (image < 0), -2.0)
    best = kept.topk(min(count, kept.shape[1]), dim=1)
    place = ranked.indices.gather(1, best.indices)
    there = best.values > -2
    row = rows.gather(1, place)
    return torch.where(there, row // len(FLIPS), -1), place // per_window, torch.where(there, row % len(FLIPS), 0)

"""Few-shot accuracy: k-NN and linear probe on a few images of each class, over repeated draws."""

# N images

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from vitrail.data.draws import permutation
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.intervals import Interval, mean_interval
from vitrail.evaluate.knn import knn
from vitrail.evaluate.probe import GRID, linear_probe


@dataclass(frozen=True)
class Mean:
    """Mean of a measurement over several draws."""

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """Mean of the values."""
        return fmean(self.values)

    @property
    def interval(self) -> Interval:
        """Interval of the mean at 95 % by Student's t, within 0 and 1; (0, 1) for one draw."""
        low, high = mean_interval(self.values)
        return (0.0, 1.0) if math.isinf(low) else (max(0.0, low), min(1.0, high))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {"accuracy": self.value, "interval": list(self.interval), "draws": list(self.values)}


@dataclass(frozen=True)
class FewShot:
    """Few-shot accuracy at one number of images per class."""

    shots: int
    """Number of images per class."""
    knn: Mean
    probe: Mean
    short: tuple[int, ...]
    """Classes with fewer images, all of which are taken."""


def few_shot(
    train: LabelledEmbeddings,
    test: LabelledEmbeddings,
    *,
    shots: Sequence[int] = (1, 5, 10),
    draws: int = 5,
    num_classes: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[FewShot, ...]:
    """Measure accuracy on the test images with a few training images of each class, over `draws` draws.

    Draws are keyed by the seed; images of fewer shots are a subset of those of more. The probe's penalty is chosen on the
    drawn images. Raises ValueError for shots or draws below 1.
    """
    if draws < 1 or min(shots, default=0) < 1:
        raise ValueError(f"shots {', '.join(map(str, shots)) or 'none'} and draws {draws} must be at least 1")
    counts, done = train.labels.bincount(minlength=num_classes), []
    for number in shots:
        by_knn, by_probe = [], []
        for draw in range(draws):
            few = train.at(draw_shots(train.labels, number, seed=seed, draw=draw))
            probe = linear_probe(few, None, test, num_classes=num_classes, grid=GRID[::2], seed=seed, device=device)
            assert probe.test is not None
            by_knn.append(knn(few, test, device=device).value)
            by_probe.append(probe.test.value)
        short = tuple((counts < number).nonzero()[:, 0].tolist())
        done.append(FewShot(number, Mean(tuple(by_knn)), Mean(tuple(by_probe)), short))
    return tuple(done)


def draw_shots(labels: Int64[Tensor, " N"], shots: int, *, seed: int, draw: int) -> Int64[Tensor, " n"]:
    """Draw positions of up to `shots` images of each class, by a hash of seed, draw and position."""
    order = permutation(len(labels), seed=seed, epoch=draw)
    return torch.cat([order[labels[order] == label][:shots] for label in labels.unique()])

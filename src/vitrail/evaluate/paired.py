"""Difference of two accuracies on the same images, with its interval."""

# N images

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from jaxtyping import Bool
from torch import Tensor

from vitrail.evaluate.metrics import Interval

Verdict = Literal["beats", "no difference shown", "is worse"]


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of a second model minus that of a first one, on the same images."""

    value: float
    interval: Interval
    """Interval at 95 %."""

    @property
    def verdict(self) -> Verdict:
        """Whether the second model beats the first: where the interval does not hold 0."""
        low, high = self.interval
        return "beats" if low > 0 else "is worse" if high < 0 else "no difference shown"

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {"value": self.value, "interval": list(self.interval), "verdict": self.verdict}


def paired_difference(before: Bool[Tensor, " N"], after: Bool[Tensor, " N"], *, level: float = 0.95) -> PairedDifference:
    """Compare two models by which images each classifies correctly.

    With b images that only `after` gets right and c that only `before` does, the difference is (b - c) / N. Its interval is
    Wald's with half an image added to each of the four cells (Agresti & Min 2005), within -1 and 1. Raises ValueError without
    images.
    """
    if not len(before):
        raise ValueError("there are no images to compare two models on; give 1 at least")
    gained, lost, count = int((after & ~before).sum()), int((before & ~after).sum()), len(before)
    b, c, total = gained + 0.5, lost + 0.5, count + 2
    middle = (b - c) / total
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(b + c - (b - c) ** 2 / total) / total
    return PairedDifference((gained - lost) / count, (max(-1.0, middle - reach), min(1.0, middle + reach)))

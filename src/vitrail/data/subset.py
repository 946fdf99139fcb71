"""Subset of a split, and the order in which images of all classes join one."""

# B batch · N images of the split · n images of the subset

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split, stable_fraction


class Subset(Split):
    """The images of a split at `positions`, in that order. `RawBatch.indexes` are positions in the subset."""

    def __init__(self, split: Split, positions: Int64[Tensor, " n"]) -> None:
        super().__init__(
            labels=split.labels[positions], sizes=split.sizes[positions], names=[split.names[i] for i in positions.tolist()]
        )
        self.multi_hot = None if split.multi_hot is None else split.multi_hot[positions]
        self._split, self._positions = split, positions

    @property
    def workers(self) -> int:
        """See Split.workers."""
        return self._split.workers

    def read(
        self, indexes: Int64[Tensor, " B"], *, boxes: Float[Tensor, "B 4"] | None = None
    ) -> tuple[RawBatch, tuple[Skipped, ...]]:
        """See Split.read."""
        positions = self._positions[indexes]
        raw, failures = self._split.read(positions, boxes=boxes)
        return replace(raw, indexes=indexes[torch.isin(positions, raw.indexes)]), failures


def stratified_order(labels: Int64[Tensor, " N"], names: Sequence[str]) -> Int64[Tensor, " N"]:
    """Return positions so that the first n of them, for any n, have every class in proportion, to within one image.

    The first images of all classes come first. Within a class the order is that of a hash of the names, so that it does not
    change when other images are added, and the images of a smaller part are among those of a larger one.
    """
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    keys = torch.tensor([stable_fraction(name) for name in names], dtype=torch.float64)
    by_class = keys.argsort(stable=True)
    by_class = by_class[classes[by_class].argsort(stable=True)]
    starts = (counts.cumsum(0) - counts)[classes[by_class]]
    share = torch.empty_like(keys)  # of its class that comes before an image
    share[by_class] = (torch.arange(len(labels)) - starts).double() / counts[classes[by_class]]
    order = keys.argsort(stable=True)
    return order[share[order].argsort(stable=True)]


def fraction_of(labels: Int64[Tensor, " N"], names: Sequence[str], fraction: float) -> Int64[Tensor, " n"]:
    """Return the positions of a share of the images, by `stratified_order`, at least one of each class; sorted."""
    count = max(len(labels.unique()), round(fraction * len(labels)))
    return stratified_order(labels, names)[:count].sort().values

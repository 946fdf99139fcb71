"""Subset of a split."""

# B batch · n images

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split


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

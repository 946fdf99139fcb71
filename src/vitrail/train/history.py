"""Losses of the last steps, kept on the device until they are read together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.batch import Batch


class StepLosses(NamedTuple):
    """Losses of one step, which are not read yet."""

    step: int
    """Number of the step, counted from 1."""
    epoch: int
    indexes: Int64[Tensor, " B"] | None
    """Images of its batch in this process; None for placeholders."""
    names: tuple[str, ...]
    values: Float[Tensor, " n"]
    """Losses of these names, on the device."""


class NotFinite(NamedTuple):
    """A loss or gradient norm that is not finite."""

    step: StepLosses
    name: str
    value: float


@dataclass
class History:
    """Losses of the steps since the last `read`, and their sums since the last line of the log.

    Reading a number waits until the device has computed it, so a step that reads its own loss leaves the device idle while the
    next one is prepared. All numbers are read at once, in one copy.
    """

    unread: list[StepLosses] = field(default_factory=list)
    """Steps whose losses have not been read."""
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum and count of each loss that was read since the last `means`."""

    def add(self, step: int, epoch: int, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Add a step."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        self.unread.append(StepLosses(step, epoch, None if batch.stands_in else batch.indexes, tuple(losses), values))

    def read(self) -> NotFinite | None:
        """Read the losses of all steps since the last call. Return the first loss or gradient norm that is not finite."""
        if not self.unread:
            return None
        numbers, broken = iter(torch.cat([step.values for step in self.unread]).tolist()), None
        for step in self.unread:
            values = {name: next(numbers) for name in step.names}
            for name, value in values.items():
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = total + value, count + 1
            wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0))]
            if wrong and broken is None:
                broken = NotFinite(step, wrong[0], values[wrong[0]])
        self.unread.clear()
        return broken

    def means(self) -> dict[str, float]:
        """Return the mean of each loss that was read since the last call."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums.clear()
        return means

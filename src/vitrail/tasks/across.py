"""Statistics of a batch over all processes that share it, with gradients: as if one process had the whole batch."""

# n rows of this process · F features

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

LEAST_STEPS = 10
"""Least number of steps over which prototypes and dimensions in use are averaged: healthy runs dip for a few (dev/LOG.md)."""


class _SumOver(torch.autograd.Function):
    """Sum of a tensor over the processes. Each one's loss reads the sum, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, with gradients; itself in a single process.

    A loss of such sums is the same in all processes. Its gradients, averaged over them, are those of one process with the whole
    batch.
    """
    if processes() == 1:
        return value
    total: Tensor = _SumOver.apply(value)
    return total


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (n, F) whose statistics in training are those of the rows of all processes (Ioffe & Szegedy 2015)."""

    def forward(self, x: Float[Tensor, "n F"]) -> Float[Tensor, "n F"]:
        """Normalise each feature."""
        if not self.training or processes() == 1:
            return super().forward(x)
        x = x.float()
        sums = sum_over_processes(torch.cat([x.sum(0), x.square().sum(0), x.new_full((1,), len(x))]))
        rows = sums[-1].detach()
        mean = sums[: x.shape[1]] / rows
        variance = (sums[x.shape[1] : -1] / rows - mean.square()).clamp(min=0)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), momentum)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class StepSums(nn.Module):
    """Sums of values over the images of all processes, and of all parts of a step."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(values + 1), persistent=False)  # of the values, and the rows
        self.sums: Tensor

    @torch.no_grad()
    def add(self, values: Float[Tensor, "*_ K"], *, counted: bool) -> None:
        """Add rows of all processes to those of this step; a process whose images only stand in is not `counted`."""
        rows = values.flatten(0, -2).float()
        self.add_sum(rows.sum(0), count=len(rows), counted=counted)

    @torch.no_grad()
    def add_sum(self, values: Float[Tensor, " K"], *, count: int, counted: bool) -> None:
        """Add the sum of `count` rows of each process."""
        sums = torch.cat([values, values.new_full((1,), count)])
        self.sums.add_(sum_over_processes(sums if counted else torch.zeros_like(sums)))

    def take_mean(self) -> tuple[Float[Tensor, " K"], Float[Tensor, ""]]:
        """End a step. Return the mean of its rows, zeros without any, and their number."""
        values, count = self.sums[:-1] / self.sums[-1].clamp(min=1), self.sums[-1].clone()
        self.sums.zero_()
        return values, count

"""One step: forward, backward, and one move of the weights."""

# B batch · K classes

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.train.optim import Optimizers

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""Returns a dict that has "loss"; what else it holds is logged."""


def classify(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy against soft targets, and the share of images whose heaviest class comes out on top."""
    logits = model(batch.images).float()  # (B, K)
    right = logits.detach().argmax(dim=1) == batch.targets.argmax(dim=1)
    return {"loss": F.cross_entropy(logits, batch.targets), "accuracy": right.float().mean()}


@dataclass(frozen=True)
class Step:
    """Moves a model's weights by one batch."""

    model: nn.Module
    optimizers: Optimizers
    objective: Objective = classify
    autocast_dtype: torch.dtype | None = None
    """bf16 for mixed precision: weights and optimizer stay in fp32."""
    clip_norm: float | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's numbers for this batch, before the move."""
        with autocast(batch.images.device, self.autocast_dtype):
            losses = self.objective(self.model, batch)
        losses["loss"].backward()
        if self.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            losses["grad_norm"] = norm.detach()
        self.optimizers.step()
        self.optimizers.zero_grad()
        return {name: value.detach() for name, value in losses.items()}


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Mixed precision in `dtype`, or nothing at all."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class Ema:
    """The running mean of a model's weights: mean ← d·mean + (1 - d)·weights, with d = min(decay, (1 + t) / (10 + t)).

    Early on the mean forgets faster, or it would hold the random start for long. Buffers are copied as they are.
    """

    def __init__(self, model: nn.Module, mean: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = mean.requires_grad_(False).eval()
        self._mean: list[Tensor] = list(mean.parameters())
        self._weights: list[Tensor] = list(model.parameters())
        self._buffers = list(zip(mean.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._weights, 1 - decay)
        for mean, now in self._buffers:
            mean.copy_(now)

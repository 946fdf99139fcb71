"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: drop a branch for a share of the images, scaled to keep the mean (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # a tensor: torch.compile takes a number for a constant, and would compile each block anew; on the CPU even where
        # the model is made on the meta device, for no checkpoint fills it
        self.keep_rate = torch.tensor(1 - rate, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < self.keep_rate
        return x * (kept.to(x.dtype) / self.keep_rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"

"""Head with prototypes of DINO (Caron et al. 2021), and the centre that keeps its teacher from collapsing."""

# K prototypes · F features

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.settings import DinoConfig
from vitrail.tasks.across import LEAST_STEPS, StepSums


class _ScaledGradient(torch.autograd.Function):
    """A tensor itself, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None


class DinoHead(nn.Module):
    """Three linear layers with GELU between them, a normalised bottleneck, and prototypes of unit norm without bias.

    `rate` multiplies the gradient of the prototypes: 0 freezes them, also in a recorded step. Weight decay still shortens
    them then, without effect on the outputs, as only their direction counts.
    """

    def __init__(self, width: int, cfg: DinoConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, cfg.hidden_dim),
            nn.GELU(),
            nn.Linear(cfg.hidden_dim, cfg.hidden_dim),
            nn.GELU(),
            nn.Linear(cfg.hidden_dim, cfg.bottleneck_dim),
        )
        self.last_layer = nn.Linear(cfg.bottleneck_dim, cfg.prototypes, bias=False)
        self.register_buffer("rate", torch.ones(()), persistent=False)
        self.rate: Tensor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise weights from a truncated N(0, 0.02), and biases with zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "*_ F"]) -> Float[Tensor, "*_ K"]:
        """Return the cosine of the bottleneck with each prototype."""
        weight: Tensor = _ScaledGradient.apply(self.last_layer.weight, self.rate)
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(weight, dim=-1))


class Center(StepSums):
    """Running mean of the teacher's outputs over the images of all processes, which it subtracts from them.

    The mean of a step is averaged in after it: all parts of the step see the same centre.
    """

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__(prototypes)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(prototypes))
        self.mean: Tensor

    def targets(self, outputs: Float[Tensor, "*_ K"], temperature: Tensor) -> Float[Tensor, "*_ K"]:
        """Return the sharpened distributions softmax((z - c) / τ)."""
        return F.softmax((outputs.float() - self.mean) / temperature, dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        """End a step, and move to the mean of its outputs: c ← m c + (1 - m) mean."""
        mean, count = self.take_mean()
        self.mean.lerp_(torch.where(count > 0, mean, self.mean), 1 - self.momentum)


class InUse(StepSums):
    """Effective number of prototypes in a step's targets: exp of the entropy of their mean over the images of all processes.

    It is averaged over the steps since it was last taken.
    """

    def __init__(self, prototypes: int) -> None:
        super().__init__(prototypes)
        self.register_buffer("total", torch.zeros(2))  # of the entropies, and the steps
        self.total: Tensor

    @torch.no_grad()
    def update(self) -> None:
        """End a step, and add the entropy of the mean of its targets."""
        mean, count = self.take_mean()
        self.total.add_(torch.stack([torch.special.entr(mean).sum(), (count > 0).float()]))

    def take(self) -> float | None:
        """Return the effective number, and begin anew; None after too few steps, which count for the next call."""
        entropy, steps = self.total.tolist()
        if steps < LEAST_STEPS:
            return None
        self.total.zero_()
        return math.exp(entropy / steps)

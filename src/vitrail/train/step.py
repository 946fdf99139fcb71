"""One step: forward, backward, and one move of the weights."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from vitrail.data.batch import Batch
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast
from vitrail.tasks import Task
from vitrail.train.distributed import ALONE, World, is_sharded, own_part, whole
from vitrail.train.optim import Optimizers


@dataclass(frozen=True)
class Step:
    """Moves the weights of a task by one batch."""

    task: Task
    optimizers: Optimizers
    autocast_dtype: torch.dtype | None = None
    """bf16 or fp16 for mixed precision: weights and optimizer stay in fp32."""
    clip_norm: float | None = None
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other: the gradient of the whole batch in the memory of a part.

    BatchNorm (the convolutional stem, CNNs) is the exception, as everywhere: it takes each part for its batch.
    """
    scaler: GradScaler | None = None
    """With fp16: scales the loss, so that small gradients are not zero (Micikevicius et al. 2018, section 3.2)."""
    world: World = ALONE
    """The processes that share each batch; the gradient is the whole batch's, whatever rows each of them has."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The task's numbers for this batch, of all processes, before the move."""
        for norm in self.frozen_norms:
            norm.eval()
        losses: dict[str, Tensor] = {}
        weight = self.weight(batch)
        parts = [batch.part(index, self.accumulate) for index in range(self.accumulate)] if self.accumulate > 1 else [batch]
        if self.world.size == 1:
            parts = [part for part in parts if len(part)]  # a batch whose files went missing
        for index, part in enumerate(parts):
            share = len(part) / len(batch) * weight
            with self.summed(last=index == len(parts) - 1), autocast(part.images.device, self.autocast_dtype):
                seen = self.forward(part if len(part) else batch.rows(slice(1)))  # a process computes as often as others
                loss = seen["loss"] * share
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            for name, value in seen.items():
                value = value.detach() * share
                losses[name] = losses[name] + value if name in losses else value
        losses = self.mean(losses)
        losses |= self.move() if self.scaler is None else self.move_scaled(self.scaler)
        self.optimizers.zero_grad()
        return losses

    def weight(self, batch: Batch) -> float:
        """What this process's mean weighs: the mean over the processes is then the mean over all images that could be read."""
        own = 0 if batch.stands_in else len(batch)
        if self.world.size == 1:
            return float(own > 0)
        images = int(self.world.sum(torch.tensor(own)).item())
        return self.world.size * own / max(1, images)

    def mean(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The task's numbers, averaged over the processes."""
        if self.world.size == 1:
            return losses
        values = self.world.sum(torch.stack([value.float() for value in losses.values()])) / self.world.size
        return dict(zip(losses, values, strict=True))

    @functools.cached_property
    def forward(self) -> Callable[[Batch], dict[str, Tensor]]:
        """The task; with the whole of it in several processes, their gradients are averaged behind it."""
        if self.world.size == 1 or is_sharded(self.task.model):
            return self.task
        # Of a 1x1 convolution in channels_last, whose strides can be written in two ways: the bytes are the same.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            self.task, gradient_as_bucket_view=True, find_unused_parameters=self.task.leaves_parameters_out()
        )

    @contextmanager
    def summed(self, *, last: bool) -> Iterator[None]:
        """The gradients of the last part go over the processes, and with them those of the parts before."""
        if is_sharded(self.task.model):
            self.task.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        if isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
        else:
            yield

    def move(self) -> dict[str, Tensor]:
        """Moves the weights by their gradients. Gives the gradient's norm where it is clipped."""
        numbers = {}
        if self.clip_norm is not None:
            numbers["grad_norm"] = whole(nn.utils.clip_grad_norm_(self.task.parameters(), self.clip_norm).detach())
        self.optimizers.step()
        return numbers

    def move_scaled(self, scaler: GradScaler) -> dict[str, Tensor]:
        """As `move`, by gradients of a scaled loss.

        Where they overflow, nothing moves and the scale is halved: no fault, and no norm to show, as long as the scale is
        above 1. Below, the gradients themselves are that large, and their norm says so.
        """
        for part in self.optimizers.parts:
            scaler.unscale_(part)
        norm = nn.utils.clip_grad_norm_(self.task.parameters(), self.clip_norm or math.inf).detach()
        finite, scale = math.isfinite(norm.item()), scaler.get_scale()
        if finite:  # all optimizers, or none
            self.optimizers.step()
        scaler.update()
        numbers = {"loss_scale": torch.tensor(scale)}
        skipped = not finite and 1 <= scaler.get_scale() < scale
        if not skipped and (self.clip_norm is not None or not finite):
            numbers["grad_norm"] = norm
        return numbers

    @functools.cached_property
    def frozen_norms(self) -> tuple[nn.Module, ...]:
        """BatchNorms that do not learn: their statistics stay as well, whatever mode the model is in."""
        norms = (module for module in self.task.modules() if isinstance(module, nn.BatchNorm2d) and module.affine)
        return tuple(norm for norm in norms if not any(p.requires_grad for p in norm.parameters()))


def loss_scaler(device: torch.device, dtype: torch.dtype | None) -> GradScaler | None:
    """What scales the loss of a training in `dtype`: None, but for fp16."""
    return GradScaler(device.type) if dtype == torch.float16 else None


class Ema:
    """The running mean of a model's weights: mean ← d·mean + (1 - d)·weights, with d = min(decay, (1 + t) / (10 + t)).

    Early on the mean forgets faster, or it would hold the random start for long. Buffers are copied as they are.
    """

    def __init__(self, model: nn.Module, mean: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = mean.requires_grad_(False).eval()
        self._pairs = list(zip(mean.parameters(), model.parameters(), strict=True))
        self._buffers = list(zip(mean.buffers(), model.buffers(), strict=True))

    @property
    def backbone(self) -> Backbone:
        """The mean of a backbone."""
        assert isinstance(self.mean, Backbone)
        return self.mean

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        means, weights = zip(*((own_part(mean), own_part(now)) for mean, now in self._pairs), strict=True)
        torch._foreach_lerp_(means, weights, 1 - decay)
        for mean, now in self._buffers:
            mean.copy_(now)

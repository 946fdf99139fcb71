"""Training step: forward, backward, optimizer step; and the running mean of the weights."""

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
from vitrail.train.distributed import SINGLE_PROCESS, World, full_tensor, is_sharded, local_shard
from vitrail.train.optim import Optimizers


@dataclass(frozen=True)
class Step:
    """Training step on one batch, over parts of the batch and processes."""

    task: Task
    optimizers: Optimizers
    autocast_dtype: torch.dtype | None = None
    """bf16 or fp16 for mixed precision, with weights and optimizer in fp32; None for fp32."""
    clip_norm: float | None = None
    accumulate: int = 1
    """Number of parts of a batch for gradient accumulation: the gradient of the full batch in the memory of a part.

    BatchNorm (convolutional stem, CNNs) is the exception: its statistics are those of a part.
    """
    scaler: GradScaler | None = None
    """Loss scaling for fp16, against underflow of small gradients (Micikevicius et al. 2018, section 3.2)."""
    world: World = SINGLE_PROCESS
    """Processes that share each batch; the gradient is that of the full batch, however its rows are distributed."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights. Return the task's losses on this batch, averaged over the processes, before the update."""
        for norm in self.frozen_norms:
            norm.eval()
        losses: dict[str, Tensor] = {}
        weight = self.weight(batch)
        parts = [batch.part(index, self.accumulate) for index in range(self.accumulate)] if self.accumulate > 1 else [batch]
        if self.world.size == 1:
            parts = [part for part in parts if len(part)]  # files may be unreadable
        for index, part in enumerate(parts):
            share = len(part) / len(batch) * weight
            with self.gradient_sync(last=index == len(parts) - 1), autocast(part.images.device, self.autocast_dtype):
                outputs = self.forward(part if len(part) else batch.rows(slice(1)))  # each process runs as many passes
                loss = outputs["loss"] * share
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            for name, value in outputs.items():
                value = value.detach() * share
                losses[name] = losses[name] + value if name in losses else value
        losses = self.mean(losses)
        losses |= self.update() if self.scaler is None else self.update_scaled(self.scaler)
        self.optimizers.zero_grad()
        return losses

    def weight(self, batch: Batch) -> float:
        """Return the weight of this process's mean, so that the mean over processes is the mean over all readable images."""
        local = 0 if batch.stands_in else len(batch)
        if self.world.size == 1:
            return float(local > 0)
        images = int(self.world.sum(torch.tensor(local)).item())
        return self.world.size * local / max(1, images)

    def mean(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses averaged over the processes."""
        if self.world.size == 1:
            return losses
        values = self.world.sum(torch.stack([value.float() for value in losses.values()])) / self.world.size
        return dict(zip(losses, values, strict=True))

    @functools.cached_property
    def forward(self) -> Callable[[Batch], dict[str, Tensor]]:
        """Forward pass of the task, wrapped in DDP for several processes with an unsharded model."""
        if self.world.size == 1 or is_sharded(self.task.model):
            return self.task
        # The strides of a 1x1 convolution in channels_last are ambiguous; the bytes are the same.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            self.task, gradient_as_bucket_view=True, find_unused_parameters=self.task.leaves_parameters_out()
        )

    @contextmanager
    def gradient_sync(self, *, last: bool) -> Iterator[None]:
        """Context that averages gradients over the processes only in the backward pass of the last part."""
        if is_sharded(self.task.model):
            self.task.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        if isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
        else:
            yield

    def update(self) -> dict[str, Tensor]:
        """Update the weights. Return the gradient norm if it is clipped."""
        numbers = {}
        if self.clip_norm is not None:
            numbers["grad_norm"] = full_tensor(nn.utils.clip_grad_norm_(self.task.parameters(), self.clip_norm).detach())
        self.optimizers.step()
        return numbers

    def update_scaled(self, scaler: GradScaler) -> dict[str, Tensor]:
        """Update the weights by gradients of a scaled loss. Return the scale, and the gradient norm if it is clipped.

        On overflow the update is skipped and the scale is halved, without a norm while the scale is at least 1. Below 1 the
        gradients themselves overflow, and their non-finite norm is returned.
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
    def norms(self) -> tuple[nn.Module, ...]:
        """BatchNorms of the model that are not frozen."""
        norms = (module for module in self.task.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        return tuple(norm for norm in norms if norm not in self.frozen_norms)

    def keep_statistics(self, keep: bool) -> None:
        """Keep the statistics of the model's BatchNorms as they are, or let them follow the batches."""
        for norm in self.norms:
            norm.train(not keep)

    @functools.cached_property
    def frozen_norms(self) -> tuple[nn.Module, ...]:
        """Frozen BatchNorms, which stay in evaluation mode so that their statistics are frozen as well."""
        norms = (module for module in self.task.modules() if isinstance(module, nn.BatchNorm2d) and module.affine)
        return tuple(norm for norm in norms if not any(p.requires_grad for p in norm.parameters()))


def loss_scaler(device: torch.device, dtype: torch.dtype | None) -> GradScaler | None:
    """Return a loss scaler for fp16; None for any other dtype."""
    return GradScaler(device.type) if dtype == torch.float16 else None


class Ema:
    """Exponential moving average of a model's weights: mean ← d·mean + (1 - d)·weights, d = min(decay, (1 + t) / (10 + t)).

    The decay is smaller in the first steps, so that the random initial weights fade. Buffers are copied.
    """

    def __init__(self, model: nn.Module, mean: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = mean.requires_grad_(False).eval()
        self._pairs = list(zip(mean.parameters(), model.parameters(), strict=True))
        self._buffers = list(zip(mean.buffers(), model.buffers(), strict=True))

    @property
    def backbone(self) -> Backbone:
        """Backbone with the averaged weights."""
        assert isinstance(self.mean, Backbone)
        return self.mean

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the weights after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        means, weights = zip(*((local_shard(mean), local_shard(now)) for mean, now in self._pairs), strict=True)
        torch._foreach_lerp_(means, weights, 1 - decay)
        for mean, now in self._buffers:
            mean.copy_(now)

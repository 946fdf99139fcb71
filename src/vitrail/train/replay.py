"""Training step recorded as a CUDA graph: one launch instead of hundreds, where launches take longer than the computation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitrail.data.batch import Batch
from vitrail.models.device import autocast
from vitrail.train.step import Step

Losses = dict[str, Tensor]
Replay = Callable[[], Losses]
Key = tuple[Any, ...]

WARMUP = 3
"""Steps of one shape before any is timed: kernels are chosen, and optimizers make their state."""
TIMED = 5
"""Steps that are timed launched one by one, and as many replayed."""
LAUNCH_BOUND = 0.7
"""Share of a step's time that its launches take, from which on the step is recorded."""
TOLERANCE = 1e-2
"""Largest difference of the first replay's loss from the loss of a plain pass, relative: far above rounding in bf16."""


def record_cuda_graph(run: Callable[[], Losses]) -> Replay:
    """Record what `run` launches, without computing it. Return a function that computes it, into the same memory each time."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.empty_cache()  # a graph has memory of its own
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads copy batches meanwhile
        losses = run()

    def replay() -> Losses:
        graph.replay()
        return losses

    return replay


@dataclass
class ReplayedStep:
    """A `Step` that is replayed from a recording where that is faster, which is measured in its first steps.

    The first replay is compared with a plain pass over the same batch. Where the losses differ, or recording fails, weights
    and optimizers are put back, and all steps are launched one by one, after a line that says so. Batches of other shapes
    (an unreadable image, another size) have recordings of their own, and so have the steps in which the model's BatchNorms
    keep their statistics.
    """

    step: Step
    say: Callable[[str], None]
    wait: Callable[[], None] = torch.cuda.synchronize
    record: Callable[[Callable[[], Losses]], Replay] = record_cuda_graph
    clock: Callable[[], float] = time.perf_counter
    enabled: bool = True
    """False once a recording failed or did not pay."""
    recorded: dict[Key, tuple[Batch, Replay]] = field(default_factory=dict)
    steps: Counter[Key] = field(default_factory=Counter)
    launch_s: float = 0.0
    step_s: float = 0.0

    @classmethod
    def supports(cls, step: Step, device: torch.device) -> bool:
        """Return True for a step that can be recorded: on a GPU, in one process, without loss scaling, by AdamW or Muon."""
        return device.type == "cuda" and step.world.size == 1 and step.scaler is None and step.optimizers.recordable

    def __call__(self, batch: Batch) -> Losses:
        """Update the weights, as `Step` does."""
        key = (*shapes(batch), any(norm.training for norm in self.step.norms))
        if key in self.recorded:
            static, replay = self.recorded[key]
            copy_into(static, batch)
            return replay()
        if not self.enabled or batch.stands_in or not len(batch):
            return self.step(batch)
        self.steps[key] += 1
        if self.steps[key] <= WARMUP:
            return self.step(batch)
        if self.steps[key] <= WARMUP + TIMED:
            return self.time_eager(batch, first=self.steps[key] == WARMUP + 1)
        return self.try_replay(key, batch)

    def time_eager(self, batch: Batch, *, first: bool) -> Losses:
        """Take a step, and time its launches and its computation."""
        self.wait()
        start = self.clock()
        losses = self.step(batch)
        launched = self.clock()
        self.wait()
        launch_s, step_s = launched - start, self.clock() - start
        self.launch_s, self.step_s = (launch_s, step_s) if first else (min(self.launch_s, launch_s), min(self.step_s, step_s))
        return losses

    def try_replay(self, key: Key, batch: Batch) -> Losses:
        """Take a step by recording and replaying it, if launches rule; else, or where that fails, launch it."""
        if self.launch_s < LAUNCH_BOUND * self.step_s:
            self.enabled = False
            return self.step(batch)
        self.step.optimizers.keep_rates_on(batch.images.device)
        static, restore = clone(batch), self.snapshot(batch.images.device)
        expected = self.eager_loss(static)
        restore()
        try:
            replay = self.record(lambda: self.step(static))
            losses = {name: value.detach().clone() for name, value in replay().items()}
            reason = difference(losses["loss"], expected)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
        if reason:
            restore()
            self.enabled = False
            self.say(f"note: the step could not be recorded as a CUDA graph ({reason}); it is launched kernel by kernel")
            return self.step(batch)
        self.recorded[key] = static, replay
        return losses

    def eager_loss(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch as the next step will."""
        with torch.no_grad(), autocast(batch.images.device, self.step.autocast_dtype):
            parts = [batch.part(index, self.step.accumulate) for index in range(self.step.accumulate)]
            losses = [self.step.task(part)["loss"].float() * (len(part) / len(batch)) for part in parts]
        return torch.stack(losses).sum()

    def snapshot(self, device: torch.device) -> Callable[[], None]:
        """Return a function that puts weights, buffers, optimizer state and random numbers back to what they are now."""
        tensors = [*self.step.task.parameters(), *self.step.task.buffers(), *self.step.optimizers.state_tensors()]
        values, random = [tensor.detach().clone() for tensor in tensors], torch.get_rng_state()
        gpu_random = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

        def restore() -> None:
            self.step.optimizers.zero_grad()
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)
            torch.set_rng_state(random)
            if gpu_random is not None:
                torch.cuda.set_rng_state(gpu_random, device)

        return restore


def shapes(batch: Batch) -> Key:
    """Return what one recording fits: shape and type of each tensor, the patch size, and the images' sizes."""
    tensors = {name: (tuple(value.shape), value.dtype) for name, value in batch.tensors().items()}
    return (*tensors.items(), batch.patch_size, batch.sizes)


def clone(batch: Batch) -> Batch:
    """Return a copy of a batch with memory of its own."""
    return batch.with_tensors({name: value.clone() for name, value in batch.tensors().items()})


def copy_into(static: Batch, batch: Batch) -> None:
    """Copy a batch to where a recording reads it."""
    fixed = static.tensors()
    for name, value in batch.tensors().items():
        fixed[name].copy_(value, non_blocking=True)


def difference(loss: Tensor, expected: Tensor) -> str:
    """Return why a replayed loss can't be right; "" where it can."""
    replayed, plain = float(loss), float(expected)
    if replayed == plain or abs(replayed - plain) <= TOLERANCE * max(abs(plain), 1e-3) or plain != plain:
        return ""
    return f"its loss is {replayed:.6g}, and {plain:.6g} without"

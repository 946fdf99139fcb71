"""Parameters, bytes, floating-point operations and memory of a model, without its weights and without computing.

A model with one block of each kind is built on torch's meta device and passes tensors without data (`models.shapes`). Blocks of
a kind are equal, so what one costs is what each costs; tests hold every figure to what torch counts, or a CPU allocates.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrail.models.families import one_of_each
from vitrail.models.shapes import Ledger, Shapes
from vitrail.settings import pair


class Counts(NamedTuple):
    """Size of a model, and the cost of a forward pass for one image."""

    parameters: int
    weights_bytes: int
    """Bytes of the state dict."""
    flops: int
    """Operations of matrix products and convolutions; a multiply-add is two."""


class TrainingBytes(NamedTuple):
    """Memory of a training step, without weights and optimizer."""

    kept: int
    """Bytes kept for the backward pass, images included, without the weights and their copies in bf16."""
    peak: int
    """Greatest number of bytes alive in forward or backward pass: images, activations, gradients, copies of the weights."""
    recomputed: int
    """The same with recomputed blocks."""


def count(config: Any) -> Counts:
    """Count a model of any family. Raises ValueError for an invalid config."""
    return Passes(config).infer(1)[0]


class Passes:
    """Passes of a model with one block of each kind, on images without data. Raises ValueError for an invalid config."""

    def __init__(self, config: Any) -> None:
        self.model, self.repeats = one_of_each(config)
        self.blocks, self.extra = self.model.blocks_in_order(), [count - 1 for count in self.repeats]
        parts = [(1, self.model), *zip(self.extra, self.blocks, strict=True)]
        self.parameters = sum(times * sum(p.numel() for p in part.parameters()) for times, part in parts)
        self.weights_bytes = sum(times * sum(v.nbytes for v in part.state_dict().values()) for times, part in parts)
        self.gradients = [sum(p.nbytes for p in block.parameters()) for block in self.blocks]
        self.ledger = Ledger()
        Shapes(self.ledger).take(self.model)
        self.batch_norms = any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in self.model.modules())
        self.kept, self.outputs, self.casts, self.flops = ([0] * len(self.blocks) for _ in range(4))
        """Per block, in the last pass: bytes kept for backward, bytes of the output and of bf16 weights, and operations."""
        for index, block in enumerate(self.blocks):
            block.register_forward_pre_hook(self._enter(index))
            block.register_forward_hook(self._leave(index))

    def infer(self, batch_size: int) -> tuple[Counts, int]:
        """Run the forward pass without gradients. Return the counts, and the greatest number of bytes of activations alive."""
        with self._open(batch_size, torch.no_grad()) as images:
            self.ledger.watch(inference=0)
            self.model.eval()(images)
        flops = self.ledger.flops + _times(self.extra, self.flops)
        return Counts(self.parameters, self.weights_bytes, flops // batch_size), self.ledger.peaks["inference"]

    def tokens(self) -> int | None:
        """Return the number of tokens of an image in blocks of global attention, prefix tokens included; None in others."""
        if not self.model.global_attention:
            return None
        with self._open(1, torch.no_grad()) as images:
            x, _ = self.model.eval().embed(images, pad=False, sizes=None)  # type: ignore[operator]
        return int(x.shape[1])

    def train(self, batch_size: int, *, backward: bool, bf16: bool = False, fused: bool = False) -> TrainingBytes:
        """Run the forward pass with gradients and, if `backward`, the backward pass, without which peaks are those up to it.

        With `fused`, attention in bf16 takes the fused kernel, as on a GPU; else it is that of a CPU.
        """
        if batch_size == 1 and self.batch_norms:  # of one position they refuse a single image: bytes grow by equal steps
            two, three = (self.train(count, backward=backward, bf16=bf16, fused=fused) for count in (2, 3))
            return TrainingBytes(*(2 * a - b for a, b in zip(two, three, strict=True)))
        with self._open(batch_size, torch.enable_grad(), fused=fused) as images, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kernels that are not fused in bf16: nothing is computed
            self.ledger.watch(peak=0)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = self.model.train()(images).float().mean()
            kept = self.ledger.alive + _times(self.extra, self.kept)
            kept -= self.ledger.casts + _times(self.extra, self.casts)
            self.ledger.watch(recomputed=self._recomputed(len(self.blocks)))
            if backward:
                loss.backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        return TrainingBytes(kept, self.ledger.peaks["peak"], self.ledger.peaks["recomputed"])

    @contextlib.contextmanager
    def _open(self, batch_size: int, gradients: Any, *, fused: bool = False) -> Iterator[Tensor]:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        self.ledger.begin()
        shapes, cfg = Shapes(self.ledger, fused=fused), self.model.config
        images = shapes.tensor(torch.empty(batch_size, cfg.in_channels, *pair(cfg.img_size), device="meta"))
        with gradients, shapes:
            yield images

    # ---- blocks: what those that are left out would add

    def _enter(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(block: nn.Module, args: tuple[Any, ...]) -> None:
            self.kept[index], self.casts[index], self.start_flops = self.ledger.alive, self.ledger.casts, self.ledger.flops
            if index == 0 and args[0].requires_grad:
                args[0].register_hook(lambda _: self._turn_back(-1))

        return enter

    def _leave(self, index: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def leave(block: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            self.kept[index], self.casts[index] = self.ledger.alive - self.kept[index], self.ledger.casts - self.casts[index]
            self.outputs[index] = out.nbytes
            if not self.model.training:
                self.flops[index] = self.ledger.flops - self.start_flops
            elif out.requires_grad:
                self.ledger.watch(peak=_times(self.extra[: index + 1], self.kept))
                out.register_hook(lambda _: self._turn_back(index))

        return leave

    def _turn_back(self, index: int) -> None:
        """Begin the backward pass of a block; -1: of what is before all of them.

        Of the blocks like it, those before it have left activations, and those behind it gradients.
        """
        later = _times(self.extra[index + 1 :], self.gradients[index + 1 :])
        peak, recomputed = (_times(self.extra[:index], self.kept), self._recomputed(index)) if index > 0 else (0, 0)
        if index >= 0:
            peak += self.extra[index] * max(self.kept[index], self.gradients[index])
            recomputed += self.extra[index] * max(self.outputs[index], self.gradients[index])
        self.ledger.watch(peak=peak + later, recomputed=recomputed + later)

    def _recomputed(self, blocks: int) -> int:
        """Return what the first blocks leave behind if they are recomputed, less what one of each has left behind here."""
        return _times(self.repeats[:blocks], self.outputs) - sum(self.kept[:blocks])


def _times(counts: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(count * size for count, size in zip(counts, sizes))  # noqa: B905  # the first ones of the sizes

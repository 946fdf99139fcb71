"""Colour operations applied to a batch: each sample gets its own, operation after operation or in one compiled expression."""

# B batch · C channels · H W image

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from vitrail.data.color import Images, Operation, Strengths, equalize, gaussian_blur

SEPARATE = frozenset({equalize, gaussian_blur})
"""Operations that are no formula of few pixels: a histogram, and a convolution."""
TOLERANCE, FEW = 0.01, 1e-3
"""Largest difference of a level, and share of pixels above it: those that rounding takes over a threshold."""
_equal: dict[tuple[torch.Size, torch.device, tuple[Operation, ...]], bool] = {}
"""Whether the compiled form gave the numbers of the plain one, for each kind of batch."""


@runtime_checkable
class ApplyColors(Protocol):
    """Apply to each sample, in place, the operation of its kind; a negative kind leaves the sample unchanged.

    With kinds and strengths on the CPU, the device is never waited for.
    """

    def __call__(
        self, images: Images, *, kinds: Int64[Tensor, " B"], operations: Sequence[Operation], strengths: Strengths
    ) -> None:
        """Apply the operations."""


def apply_each_(images: Images, *, kinds: Int64[Tensor, " B"], operations: Sequence[Operation], strengths: Strengths) -> None:
    """Run each operation once, on all its samples, so that the time is that of one pass over the batch. See `ApplyColors`."""
    counts = torch.bincount(kinds + 1, minlength=len(operations) + 1).tolist()
    order = torch.argsort(kinds, stable=True)
    groups = order.to(images.device, non_blocking=True).split(counts)[1:]
    amounts = strengths[order].to(images.device, non_blocking=True).split(counts)[1:]
    for operation, rows, amount in zip(operations, groups, amounts, strict=True):
        if len(rows):
            images[rows] = operation(images[rows], amount)


def apply_compiled_(
    images: Images, *, kinds: Int64[Tensor, " B"], operations: Sequence[Operation], strengths: Strengths
) -> None:
    """Compute operations that are formulas of few pixels in few kernels, by torch.compile. See `ApplyColors`.

    Equal to `apply_each_` but for rounding. The first batch of a size waits for the compiler, and is computed in both ways:
    where they differ, `apply_each_` stays, with a warning.
    """
    key = (images.shape, images.device, tuple(operations))
    if key not in _equal:
        wanted = images.clone()
        apply_each_(wanted, kinds=kinds, operations=operations, strengths=strengths)
        _apply_formulas_(images, kinds, operations, strengths)
        differ = ((images - wanted).abs() < TOLERANCE).logical_not_().float().mean().item()
        _equal[key] = differ < FEW
        if not _equal[key]:
            images.copy_(wanted)
            warnings.warn(
                f"the compiled colours of augmentation differ in {differ:.1%} of the pixels and are not used", stacklevel=2
            )
    elif _equal[key]:
        _apply_formulas_(images, kinds, operations, strengths)
    else:
        apply_each_(images, kinds=kinds, operations=operations, strengths=strengths)


def _apply_formulas_(images: Images, kinds: Tensor, operations: Sequence[Operation], strengths: Strengths) -> None:
    alone = torch.tensor([operation in SEPARATE for operation in operations])[kinds.clamp(min=0)] & (kinds >= 0)
    if bool(alone.any()):
        apply_each_(images, kinds=torch.where(alone, kinds, -1), operations=operations, strengths=strengths)
    formulas = tuple((kind, operation) for kind, operation in enumerate(operations) if operation not in SEPARATE)
    if formulas:
        kinds, strengths = (value.to(images.device, non_blocking=True) for value in (kinds, strengths))
        images.copy_(compiled()(images, kinds, strengths, formulas))


def compute_formulas(
    images: Images, kinds: Int64[Tensor, " B"], strengths: Strengths, formulas: Sequence[tuple[int, Operation]]
) -> Images:
    """Compute every operation for every sample, and keep the one of its kind: one pure expression, for a compiler."""
    out = images
    for kind, operation in formulas:
        out = torch.where((kinds == kind).view(-1, 1, 1, 1), operation(images, strengths), out)
    return out


@functools.cache
def compiled() -> Callable[..., Any]:
    """Return `compute_formulas` compiled, once for all batches."""
    return torch.compile(compute_formulas)

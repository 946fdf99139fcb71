"""Blocks that are computed once more in the backward pass instead of keeping their activations."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """Apply a block without keeping its activations; only the first of both passes moves the batch norms' statistics."""
    out: Tensor = checkpoint(block, *inputs, use_reentrant=False, context_fn=functools.partial(_contexts, block))
    return out


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), held_statistics(block)


@contextmanager
def held_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch norms write their running statistics into copies, and keep their own."""
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)

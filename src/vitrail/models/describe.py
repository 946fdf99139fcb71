"""Cost of a model of any family, without building it: tokens, parameters, operations, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitrail.models.counts import Passes

_ALLOCATOR = 1.07
"""Ratio of process memory to tensor memory: gaps between buffers, and the kernels' own (benchmarks/memory.py)."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size of a model, and the cost of a forward pass, at its own image size."""

    tokens: int | None
    """Tokens of one image in blocks of global attention, prefix tokens included; None in other models."""
    parameters: int
    flops: int
    """Floating-point operations of the forward pass for one image: matrix products and convolutions; a multiply-add is two."""
    weights_bytes: int
    """Parameters and buffers in fp32, as they are saved."""


@dataclass(frozen=True, kw_only=True)
class Description(Cost):
    """Cost of a model, including its activations."""

    inference_bytes: int
    """Peak bytes of activations in inference, images included, in fp32."""
    training_bytes: int
    """Bytes of activations kept for the backward pass, images included, in fp32 with fused attention."""
    training_bytes_bf16: int
    """Bytes of the same activations under autocast in bf16; about an eighth more where that keeps norms in fp32, as on CUDA."""


@dataclass(frozen=True)
class Peak:
    """Peak memory of a training step, in bytes, beyond the imports.

    Includes weights, gradients and AdamW's two moments in fp32, a batch of images, activations, and the backward pass's
    temporary tensors.

    Counted as on a CPU, where attention in bf16 keeps its weights (h N N) up to `PLAIN_ATTENTION_MAX_TOKENS` tokens. Not
    counted: a running mean (train.ema_decay), which is one more copy of the weights, and the images of the data set.
    """

    fp32: int
    bf16: int
    """Peak under autocast: activations are kept in bf16, with a bf16 copy of the weights."""


def cost_of(config: Any) -> Cost:
    """Count the cost of a model without memory of activations, in a third of the time. Raises as `describe_model`."""
    passes = Passes(config)
    return Cost(**passes.infer(1)[0]._asdict(), tokens=passes.tokens())


def describe_model(config: Any, *, batch_size: int = 1) -> Description:
    """Count the cost of a model: memory for `batch_size` images, everything else for one image or for the model.

    Raises ValueError for an invalid config or image size, such as a patch that does not divide the image.
    """
    passes = Passes(config)
    counts, inference = passes.infer(batch_size)
    return Description(
        **counts._asdict(),
        tokens=passes.tokens(),
        inference_bytes=inference,
        training_bytes=passes.train(batch_size, backward=False).kept,
        training_bytes_bf16=passes.train(batch_size, backward=False, bf16=True, fused=True).kept,
    )


def training_peaks(config: Any, *, batch_size: int = 1) -> tuple[Peak, Peak | None]:
    """Return the peak memory of training, and that with recomputed blocks (train.checkpointing); None without blocks.

    Raises as `describe_model`.
    """
    passes = Passes(config)
    fp32, bf16 = (passes.train(batch_size, backward=True, bf16=bf16) for bf16 in (False, True))

    def peak(*activations: int) -> Peak:
        weights = 3 * passes.weights_bytes  # and AdamW's two moments
        return Peak(*(round(_ALLOCATOR * (weights + size)) for size in activations))

    return peak(fp32.peak, bf16.peak), peak(fp32.recomputed, bf16.recomputed) if passes.blocks else None

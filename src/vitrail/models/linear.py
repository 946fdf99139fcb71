"""Linear layer whose fp32 products take the fast route of processors that MKL slows down."""

# B leading axes · I inputs · O outputs

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.onednn import fast_products, mkl_is_slow

SMALL = 2**22
"""Multiplications below which a product is too short to choose a route for."""


class Linear(nn.Linear):
    """`nn.Linear`, of which fp32 products on a CPU go through oneDNN where torch takes MKL's slow path.

    MKL keeps its fast kernels for Intel's processors; on others it reaches less than half of oneDNN's rate (dev/LOG.md). The
    route follows from processor and shape alone, so that a resumed run repeats its numbers. Both compute in fp32.
    """

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return input · weightᵀ + bias."""
        compiling = torch.compiler.is_compiling()  # asked first: what follows would be guarded in every graph
        if compiling or input.numel() * self.out_features < SMALL or not takes_onednn(input, self.weight):
            return nn.functional.linear(input, self.weight, self.bias)
        out: Tensor = _OneDnnLinear.apply(input, self.weight, self.bias)
        return out


def takes_onednn(input: Tensor, weight: Tensor) -> bool:
    """Return True for products that oneDNN computes faster than torch's default."""
    plain = type(weight) in (Tensor, nn.Parameter)  # no shard
    fp32 = input.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return input.device.type == "cpu" and plain and fp32 and mkl_is_slow()


class _OneDnnLinear(torch.autograd.Function):
    """Linear layer by oneDNN, forward and for both gradients.

    A gradient that is differentiated again goes through torch's own products, since oneDNN's have no derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        input_gradient = torch.matmul if torch.is_grad_enabled() else _gradient_by_onednn
        rows, weight_gradient = gradient.flatten(0, -2), None
        if for_weight:
            with fast_products(x):
                weight_gradient = rows.t() @ x.flatten(0, -2)
        return (
            input_gradient(gradient, weight) if for_x else None,
            weight_gradient,
            rows.sum(0) if for_bias and ctx.has_bias else None,
        )


def _gradient_by_onednn(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return gradient · weight."""
    return _product(gradient, weight.t().contiguous(), None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out

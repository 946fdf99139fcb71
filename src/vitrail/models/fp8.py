"""Linear layers of a Transformer's blocks with products in fp8 (Micikevicius et al. 2022, "FP8 Formats for Deep Learning").

Each tensor is divided by a factor of its own, so that its largest number is the largest one of the format: E4M3 for inputs and
weights, E5M2, with the wider range, for gradients. Products are summed in fp32 and returned in bf16; weights stay in fp32.
"""

# B leading axes · M rows · I inputs · O outputs

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from jaxtyping import Shaped as Fp8  # its Float is without types of 8 bits
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitrail.models.backbone import Backbone
from vitrail.models.linear import Linear

MULTIPLE = 16
"""Sides of the matrices that a GPU multiplies in fp8 are multiples of this."""
VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
SMALLEST = 1e-12
"""Least largest number of a tensor that is scaled: one of zeros has no scale."""


def train_in_fp8(model: Backbone) -> int:
    """Let the linear layers of the blocks train in fp8, under autocast. Return their number. Raises ValueError for none.

    The layers keep their parameters and names. In evaluation mode they compute as before.
    """
    blocks = [stage.block for stage in model.stages() if stage.block is not None]
    layers = [layer for block in blocks for layer in block.modules() if type(layer) is Linear and fits(layer)]
    if not layers:
        raise ValueError(
            f'train.precision "fp8" is for linear layers of blocks with sides of multiples of {MULTIPLE}, '
            'and this model has none; use "bf16"'
        )
    for layer in layers:
        layer.__class__ = Fp8Linear
    return len(layers)


def fits(layer: Linear) -> bool:
    """Return True for a layer with sides that a product in fp8 takes."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


class Fp8Linear(Linear):
    """`Linear` whose three products, forward and backward, are computed in fp8 in training under autocast."""

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return input · weightᵀ + bias."""
        if not (self.training and torch.is_autocast_enabled(input.device.type)):
            return super().forward(input)
        out: Tensor = _Fp8Product.apply(input, self.weight, self.bias)
        return out


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, by_rows = to_fp8(x.flatten(0, -2), VALUES)  # (M, I)
        filters, by_filters = to_fp8(weight, VALUES)  # (O, I)
        ctx.save_for_backward(rows, by_rows, filters, by_filters)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        out = product(rows, filters, by_rows, by_filters, fast=True)  # (M, O)
        return (out if bias is None else out + bias.to(out.dtype)).unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, by_rows, filters, by_filters = ctx.saved_tensors
        (for_x, for_weight, for_bias), (x_dtype, weight_dtype, bias_dtype) = ctx.needs_input_grad, ctx.dtypes
        of_out = gradient.flatten(0, -2)
        grads, by_grads = to_fp8(of_out, GRADIENTS)  # (M, O)
        of_x = product(grads, turned(filters), by_grads, by_filters) if for_x else None  # (M, I)
        of_weight = product(turned(grads), turned(rows), by_grads, by_rows) if for_weight else None  # (O, I)
        return (
            None if of_x is None else of_x.to(x_dtype).unflatten(0, gradient.shape[:-1]),
            None if of_weight is None else of_weight.to(weight_dtype),
            of_out.sum(0, dtype=torch.float32).to(bias_dtype) if for_bias and bias_dtype is not None else None,
        )


def to_fp8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a tensor in fp8, and the factor () that takes it back; the device is never waited for."""
    most = torch.finfo(dtype).max
    factor = x.abs().amax().float().clamp(min=SMALLEST) / most
    return (x.float() / factor).clamp_(-most, most).to(dtype), factor


def product(
    a: Fp8[Tensor, "M I"],
    b: Fp8[Tensor, "O I"],
    by_a: Tensor,
    by_b: Tensor,
    *,
    fast: bool = False,
) -> Float[Tensor, "M O"]:
    """Return a · bᵀ of matrices in fp8 times both factors. `fast` sums less exactly on a GPU, which is enough for outputs."""
    return torch._scaled_mm(a, b.t(), scale_a=by_a, scale_b=by_b, out_dtype=torch.bfloat16, use_fast_accum=fast)


def turned(x: Fp8[Tensor, "M I"]) -> Fp8[Tensor, "I _M"]:
    """Return the transpose with rows in memory, filled up with zeros to a multiple of columns: they are what is summed over."""
    missing = -len(x) % MULTIPLE
    bits = x.view(torch.uint8).t()  # of which 0 is the number 0
    return (F.pad(bits, (0, missing)) if missing else bits.contiguous()).view(x.dtype)

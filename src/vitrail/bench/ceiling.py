"""Ceiling of a machine: the rate of plain matrix products in a number type, at a model's own shapes.

On a CPU the products in fp32 are computed by torch's default (MKL in the usual builds) and by oneDNN: on AMD processors MKL
takes a slow path, so that oneDNN is about twice as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrail.bench.case import Case
from vitrail.bench.contender import DTYPES, Contender, Precision
from vitrail.bench.processes import Call

MODEL, ONEDNN, SQUARE = "matmul", "matmul, oneDNN", "matmul, 8192 x 8192"
_SIDE = 8192


def rows(precisions: Sequence[Precision], device: str) -> list[Contender]:
    """Return the ceilings to measure: products of the model's shapes and, on a GPU, of large squares."""
    kind = torch.device(device).type
    kinds = {MODEL: model_products, **({SQUARE: square_product} if kind == "cuda" else {})}
    every = [Contender(name, precision, build) for name, build in kinds.items() for precision in precisions]
    onednn = kind == "cpu" and torch.backends.mkldnn.is_available()
    return [*every, *([Contender(ONEDNN, "fp32", onednn_products)] if onednn else [])]


def flops(name: str, case: Case) -> int:
    """Return the operations of one call of a ceiling."""
    shapes = [(_SIDE, _SIDE, _SIDE)] if name == SQUARE else _batched(case)
    return sum(2 * rows * inner * outer for rows, inner, outer in shapes)


def model_products(case: Case, precision: Precision) -> Call:
    """Build the products of the model's linear layers for a batch, each distinct shape once."""
    return _products(_batched(case), case.device, precision)


def onednn_products(case: Case, precision: Precision) -> Call:
    """Build the products of the model's linear layers for a batch, computed by oneDNN."""
    return _products(_batched(case), case.device, precision, onednn_linear)


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute a linear layer by oneDNN, as torch.compile does on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def square_product(case: Case, precision: Precision) -> Call:
    """Build the product of two large square matrices."""
    return _products([(_SIDE, _SIDE, _SIDE)], case.device, precision)


def _batched(case: Case) -> list[tuple[int, int, int]]:
    return [(case.batch_size * rows, inner, outer) for rows, inner, outer in case.products]


def _products(
    shapes: Sequence[tuple[int, int, int]],
    device: str,
    precision: Precision,
    linear: Callable[[Tensor, Tensor], Tensor] = F.linear,
) -> Call:
    dtype = DTYPES[precision] or torch.float32
    pairs = [
        (torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(outer, inner, device=device, dtype=dtype))
        for rows, inner, outer in shapes
    ]

    @torch.inference_mode()
    def call() -> None:
        for x, weight in pairs:
            linear(x, weight)

    return call

"""Muon (Jordan et al. 2024): momentum, orthogonalised, for the matrices of a Transformer's blocks."""

# n matrices of one shape · r rows · c columns

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.models.onednn import fast_products
from vitrail.train.distributed import is_sharded_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic Newton-Schulz iteration: singular values end between about 0.7 and 1.2."""
STEPS, EPSILON = 5, 1e-7
BATCH_ELEMENTS = 2**24
"""Elements that one batched product takes at most: 64 MiB in fp32."""
WIDE = 2
"""Ratio of a matrix's sides from which on products of Gram matrices, 17 in place of 15, cost less than products with X."""


class Muon(torch.optim.Muon):
    """torch's Muon with one batched product for all matrices of one shape, computed in `dtype`.

    torch takes matrix after matrix, in bf16 on every device: on a CPU that emulates bf16 this is most of a training step. State
    and settings are torch's. A sharded matrix is moved by torch's own code.
    """

    def __init__(self, params: Any, *, dtype: torch.dtype, **options: Any) -> None:
        super().__init__(params, **options)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        learning = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if closure is not None or any(map(is_sharded_tensor, learning)):
            return super().step(closure)  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            for matrices in self.batches(group):
                self.move(matrices, group)
        return None

    def batches(self, group: dict[str, Any]) -> Iterator[list[Tensor]]:
        """The matrices of a group with a gradient, in lists of one shape that one product takes."""
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault(parameter.shape, []).append(parameter)
        for shape, matrices in shapes.items():
            count = max(1, BATCH_ELEMENTS // shape.numel())
            yield from (matrices[first : first + count] for first in range(0, len(matrices), count))

    def move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """One step of matrices of one shape: Nesterov momentum, orthogonalised and scaled to AdamW's size, and weight decay."""
        gradients, moments = [], []
        for matrix in matrices:
            assert matrix.grad is not None
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            gradients.append(matrix.grad)
            moments.append(state["momentum_buffer"])
        torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
        updates = torch.stack(torch._foreach_lerp(gradients, moments, group["momentum"])).to(self.dtype)
        orthogonal = orthogonalise(updates).to(matrices[0].dtype)
        lr = group["lr"] * 0.2 * math.sqrt(max(matrices[0].shape))  # as large as AdamW's updates (Liu et al. 2025)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        if isinstance(lr, Tensor):  # on the device, for a recorded step
            torch._foreach_add_(matrices, list(orthogonal.mul_(-lr)))
        else:
            torch._foreach_add_(matrices, list(orthogonal), alpha=-lr)


def orthogonalise(matrices: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    """Newton-Schulz iteration towards U Vᵀ of each matrix U S Vᵀ: X <- (a + b A + c A²) X with A = X Xᵀ.

    In fp32 the factors of a wide matrix are multiplied without X, which takes products of the smaller side alone.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the smaller Gram matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPSILON)
    with fast_products(x):
        if x.dtype == torch.float32 and x.shape[2] >= WIDE * x.shape[1]:
            x = iterate_gram(x @ x.mT) @ x
        else:
            for _ in range(STEPS):
                gram = x @ x.mT
                x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def iterate_gram(gram: Float[Tensor, "n r r"]) -> Float[Tensor, "n r r"]:
    """Return the product of the iteration's factors F = a + b A + c A²; as polynomials of A = X Xᵀ they commute, so A <- F A F.

    The error of A's small eigenvalues grows with each factor: 1e-5 of the result in fp32, too much in bf16 (dev/LOG.md).
    """
    a, b, c = COEFFICIENTS
    product = None
    for step in range(STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product

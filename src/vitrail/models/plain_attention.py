"""Attention as plain products with a backward pass of its own: fewer copies than autograd makes of the same steps."""

# B batch · N tokens · h heads · d width of a head · D = h d · n windows of an image

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def plain_attention(
    qkv: Float[Tensor, "B N _3D"], num_heads: int, bias: Float[Tensor, "n h N N"] | None = None
) -> Float[Tensor, "B N D"]:
    """Compute softmax(q kᵀ / √d + bias) v of the output of one projection to q, k and v.

    A bias is added to the scores where they lie; B is a multiple of its n, the windows of one image following each other.
    Without one, values and gradients are those of the same products under autograd, to the last bit. The gradients of q, k
    and v are written into one tensor, which autograd joins from three.
    """
    out: Tensor = _PlainAttention.apply(qkv, num_heads, bias)
    return out


class _PlainAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, bias: Tensor | None) -> Tensor:
        joined = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)  # (3, B h, N, d)
        q, k, v = joined.contiguous()
        scores = torch.baddbmm(_nothing(q), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)  # (B h, N, N)
        if bias is not None:
            scores.view(-1, *bias.shape).add_(bias)
        weights = scores.softmax(dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.num_heads, ctx.bias = num_heads, None if bias is None else (bias.shape, bias.dtype)
        return (weights @ v).unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        q, k, v, weights = ctx.saved_tensors
        gradient = gradient.unflatten(2, (ctx.num_heads, -1)).transpose(1, 2).flatten(0, 1)  # (B h, N, d)
        of_scores = torch._softmax_backward_data(gradient @ v.mT, weights, -1, weights.dtype)  # (B h, N, N)
        of_qkv, scale = q.new_empty(3, *q.shape), q.shape[-1] ** -0.5
        torch.baddbmm(_nothing(q), of_scores, k, beta=0, alpha=scale, out=of_qkv[0])
        torch.baddbmm(_nothing(q), of_scores.mT, q, beta=0, alpha=scale, out=of_qkv[1])
        torch.bmm(weights.mT, gradient, out=of_qkv[2])
        of_bias = None
        if ctx.bias is not None and ctx.needs_input_grad[2]:
            shape, dtype = ctx.bias
            of_bias = of_scores.view(-1, *shape).sum(0, dtype=dtype)
        return of_qkv.unflatten(1, (-1, ctx.num_heads)).permute(1, 3, 0, 2, 4).flatten(2), None, of_bias


def _nothing(x: Tensor) -> Float[Tensor, "1 1 1"]:
    """Return what `baddbmm` with beta 0 does not read."""
    return x.new_empty(1).expand(1, 1, 1)

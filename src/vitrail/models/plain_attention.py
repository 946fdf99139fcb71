"""Attention as plain products with a backward pass of its own: fewer copies than autograd makes of the same steps."""

# B batch · N tokens · h heads · d width of a head · D = h d · n windows of an image

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vitrail.models.attention import PLAIN_ATTENTION_MAX_TOKENS, prefers_plain_attention
from vitrail.models.onednn import fast_products, routes_products

PART = 2**20
"""Scores computed at a time where no gradient is needed: they stay in the cache, and memory does not grow with the batch."""


def plain_attention(
    qkv: Float[Tensor, "B N _3D"], num_heads: int, bias: Float[Tensor, "n h N N"] | None = None
) -> Float[Tensor, "B N D"]:
    """Compute softmax(q kᵀ / √d + bias) v of the output of one projection to q, k and v.

    A bias is added to the scores where they lie; B is a multiple of its n, the windows of one image following each other.
    Without one, values and gradients are those of the same products under autograd, to the last bit, but for the rounding of
    `fast_products`. The gradients of q, k and v are written into one tensor, which autograd joins from three.
    """
    if torch.is_grad_enabled():
        out: Tensor = _PlainAttention.apply(qkv, num_heads, bias)
        return out
    images = max(1, PART // (num_heads * qkv.shape[1] ** 2))
    if bias is not None or images >= len(qkv):
        return _attend(qkv, num_heads, bias)[0]
    return torch.cat([_attend(part, num_heads, None)[0] for part in qkv.split(images)])


def _attend(qkv: Tensor, num_heads: int, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the output, and q, k, v (B h, N, d) and the weights (B h, N, N)."""
    joined = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)  # (3, B h, N, d)
    q, k, v = joined.contiguous()
    with fast_products(q):
        scores = torch.baddbmm(_nothing(q), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)  # (B h, N, N)
        if bias is not None:
            scores.view(-1, *bias.shape).add_(bias)
        weights = scores.softmax(dim=-1)
        out = weights @ v
    return out.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2), (q, k, v, weights)


class _PlainAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, bias: Tensor | None) -> Tensor:
        out, kept = _attend(qkv, num_heads, bias)
        ctx.save_for_backward(*kept)
        ctx.num_heads, ctx.bias = num_heads, None if bias is None else (bias.shape, bias.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        q, k, v, weights = ctx.saved_tensors
        gradient = gradient.unflatten(2, (ctx.num_heads, -1)).transpose(1, 2).flatten(0, 1)  # (B h, N, d)
        of_qkv, scale = q.new_empty(3, *q.shape), q.shape[-1] ** -0.5
        with fast_products(q):
            of_scores = torch._softmax_backward_data(gradient @ v.mT, weights, -1, weights.dtype)  # (B h, N, N)
            torch.baddbmm(_nothing(q), of_scores, k, beta=0, alpha=scale, out=of_qkv[0])
            torch.baddbmm(_nothing(q), of_scores.mT, q, beta=0, alpha=scale, out=of_qkv[1])
            torch.bmm(weights.mT, gradient, out=of_qkv[2])
        of_bias = None
        if ctx.bias is not None and ctx.needs_input_grad[2]:
            shape, dtype = ctx.bias
            of_bias = of_scores.view(-1, *shape).sum(0, dtype=dtype)
        return of_qkv.unflatten(1, (-1, ctx.num_heads)).permute(1, 3, 0, 2, 4).flatten(2), None, of_bias


def plain_is_faster(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Return True where `plain_attention` beats the fused kernel: in bf16, and in fp32 where oneDNN multiplies."""
    if prefers_plain_attention(device, dtype, tokens):
        return True
    fp32 = device.type == "cpu" and dtype == torch.float32 and tokens <= PLAIN_ATTENTION_MAX_TOKENS
    return fp32 and routes_products()


def _nothing(x: Tensor) -> Float[Tensor, "1 1 1"]:
    """Return what `baddbmm` with beta 0 does not read."""
    return x.new_empty(1).expand(1, 1, 1)

"""Attention of queries to keys, with the fastest kernel for a device and number type; and the record of one attention."""

# B batch · N tokens · Q queries · D width · h heads · d = D / h

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vitrail.models.packing import BlockDiagonal

Tokens = Float[Tensor, "B N D"]
KeyMask = Bool[Tensor, "B N"]  # True where a token may be looked at
KeySizes = Float[Tensor, "B N"]  # number of the image's tokens that each token stands for, after merging
Mask = KeyMask | KeySizes | BlockDiagonal  # the last: several images in one sequence

PLAIN_ATTENTION_MAX_TOKENS = 640
"""Number of tokens up to which matmul + softmax beats the flash kernel on a CPU in bf16 (benchmarks/attention.py)."""


class Attended(NamedTuple):
    """Inputs and output of one attention: enough for any row of its weights, softmax(q kᵀ / √d), and for their gradient."""

    tokens: Tokens
    """Input tokens after the norm."""
    queries: Float[Tensor, "B h Q d"]
    keys: Float[Tensor, "B h N d"]
    values: Float[Tensor, "B h N d"]
    out: Float[Tensor, "B h Q d"]
    """Output before the projection."""
    bias: Float[Tensor, "*B h Q N"] | None = None
    """Bias of the scores (`Backbone.score_bias`)."""


def attention_weights(q: Tensor, k: Tensor, mask: KeyMask | None, added: Tensor | None = None) -> Float[Tensor, "B h Q N"]:
    """Return softmax(q kᵀ / √d) over the unmasked keys, with a bias (…, h, Q, N) `added` to the scores if there is one."""
    lead, scale = q.shape[:2], q.shape[-1] ** -0.5
    if mask is None:
        bias, beta = q.new_empty(1).expand(1, 1, 1), 0  # beta 0: the bias is not read
    else:
        bias, beta = q.new_zeros(mask.shape).masked_fill_(~mask, float("-inf")).repeat_interleave(lead[1], 0)[:, None], 1
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=beta, alpha=scale)  # (B h, Q, N)
    scores = scores.unflatten(0, lead)
    return (scores if added is None else scores + added).softmax(dim=-1)


def prefers_plain_attention(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Return True where products and softmax beat the fused kernel."""
    return device.type == "cpu" and dtype == torch.bfloat16 and tokens <= PLAIN_ATTENTION_MAX_TOKENS


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, bias: Float[Tensor, "b h Q N"] | None = None, *, dropout: float
) -> Float[Tensor, "B h Q d"]:
    """Compute attention with the fastest kernel for the device and type; tests hold the kernels to equal outputs.

    With sizes of the keys, attention is proportional to them: softmax(q kᵀ / √d + log size) v (Bolya et al. 2023, equation 1).
    """
    if isinstance(mask, BlockDiagonal):
        assert bias is None, "images with a bias of pairs are not packed"
        return mask.attend(q, k, v)
    if mask is not None and mask.is_floating_point():
        log_sizes = mask.log()[:, None, None].expand(-1, -1, q.shape[-2], -1)  # ONNX's attention has no broadcast over queries
        mask, bias = None, log_sizes if bias is None else bias + log_sizes
    if prefers_plain_attention(q.device, q.dtype, k.shape[-2]):
        return F.dropout(attention_weights(q, k, mask, bias), dropout) @ v
    keys = None if mask is None else mask[:, None, None]
    if bias is not None:
        bias = bias.to(q.dtype)
        keys = bias if keys is None else bias.masked_fill(~keys, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)

"""Attention rollout (Abnar & Zuidema 2020): attention through all layers, without a class."""

# B batch · Q queries · N tokens

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Images, Query, open_scene
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.methods.attention import Fusion, fuse_heads
from vitrail.explain.passes import QueriesAndKeys, attention_rows, forward_pass, query_chunks, query_row
from vitrail.settings import Pair


@torch.no_grad()
def rollout(
    model: nn.Module,
    images: Images,
    *,
    heads: Fusion = "mean",
    discard_ratio: float = 0.0,
    query: Query = "cls",
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Maps:
    """Return attention rollout: the product over the layers of ½ (A + 1), its rows scaled to sum to one.

    `heads` makes one matrix A of a layer's heads; of it, the `discard_ratio` of smallest weights is set to zero first. What
    the head reads of the product's rows is the map. It knows no class, and takes every layer for linear. Raises ValueError for
    a ratio outside [0, 1), and for a model without global attention.
    """
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"discard_ratio {discard_ratio} must be at least 0 and below 1")
    with open_scene(model, images, method="rollout", pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as scene:
        depth = scene.vit.config.depth
        forward = forward_pass(scene, layers=range(depth))
        row, note = query_row(forward, query)
        for layer in reversed(range(depth)):
            attended = forward.queries_and_keys(layer)
            row = _through_layer(attended, row, forward.mask, heads=heads, discard_ratio=discard_ratio)
        discarded = f", smallest {discard_ratio:.0%} left out" if discard_ratio else ""
        return maps_of(scene, row, method="rollout", labels=f"all layers, {heads} of heads{discarded}", notes=(note,))


def _through_layer(
    attended: QueriesAndKeys, row: Float[Tensor, "B N"], mask: Tensor | None, *, heads: Fusion, discard_ratio: float
) -> Float[Tensor, "B N"]:
    """Multiply a row with one layer's ½ (A + 1), its rows scaled to sum to one; some rows of the matrix at a time."""
    threshold = None
    if discard_ratio:  # of the whole matrix
        weights = [fuse_heads(attention_rows(attended, chunk, mask), heads) for chunk in query_chunks(attended)]
        flat = torch.cat(weights, dim=1).flatten(1)
        count = int(discard_ratio * flat.shape[1])
        threshold = flat.kthvalue(count, dim=1).values[:, None, None] if count else None
        del weights, flat
    result = torch.zeros_like(row)
    for chunk in query_chunks(attended):
        matrix = fuse_heads(attention_rows(attended, chunk, mask), heads)  # (B, q, N)
        if threshold is not None:
            matrix = matrix * (matrix > threshold)
        identity = row[:, chunk] / (matrix.sum(dim=2) + 1)
        result += torch.einsum("bq,bqn->bn", identity, matrix)
        result[:, chunk] += identity
    return result

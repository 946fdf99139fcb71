"""Where tokens look: attention of any layer and head, and rollout through all of them."""

# B batch · h heads · Q queries · N tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.config import Pair
from vitrail.explain.inputs import Images, Query, require_head, require_layer, scene
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.walk import Asked, Walk, in_chunks, reader, walk, weights

Fusion = Literal["mean", "max", "min"]
Heads = Fusion | int


def attention(
    model: nn.Module,
    images: Images,
    *,
    layer: int = -1,
    heads: Heads = "mean",
    query: Query = "cls",
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Maps:
    """What one token's attention gives each patch: a share of the whole, of which prefix tokens have the rest.

    `heads` is one head, or the mean, the largest or the smallest of all; `query` the class token, or the patch that holds a
    pixel (x, y). Without a class token, "cls" is what the head reads instead: the rows of all patches, weighted as it weighs
    them. A negative layer counts from the end. Raises ValueError for a layer, head or query that does not exist.
    """
    return attention_sheet(
        model,
        images,
        layers=[layer],
        heads=[heads],
        query=query,
        pad=pad,
        sizes=sizes,
        patch_size=patch_size,
        img_size=img_size,
    )[0]


@torch.no_grad()
def attention_sheet(
    model: nn.Module,
    images: Images,
    *,
    layers: Sequence[int] | Literal["all"] = "all",
    heads: Sequence[Heads] | Literal["all"] = ("mean",),
    query: Query = "cls",
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> list[Maps]:
    """As `attention`, for several layers and heads in one pass: layer by layer, head by head."""
    with scene(model, images, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as seen:
        depth, count = seen.model.config.depth, seen.model.config.num_heads
        chosen = range(depth) if layers == "all" else [require_layer(seen.model, layer) for layer in layers]
        every: Sequence[Heads] = range(count) if heads == "all" else heads
        for head in every:
            if isinstance(head, int):
                require_head(seen.model, head)
        token = None if query == "cls" else seen.token(query)
        if query == "cls" and seen.model.config.class_token:
            token = 0
        there = walk(seen, layers=chosen, to_the_end=token is None)
        row, note = reader(there) if token is None else (None, "")
        asks = f"patch at {query[0]},{query[1]}" if query != "cls" else "class token" if token == 0 else "head's view"
        found = []
        for layer in chosen:
            each = token_rows(there, layer, token) if row is None else mixed_rows(there, layer, row)  # (B, h, N)
            for head in every:
                label = f"layer {layer}, {f'head {head}' if isinstance(head, int) else f'{head} of {count} heads'}, {asks}"
                found.append(maps_of(seen, fused(each, head), method="attention", labels=label, notes=(note,)))
        return found


def token_rows(there: Walk, layer: int, token: int | None) -> Float[Tensor, "B h N"]:
    """One token's attention, head by head."""
    assert token is not None
    return weights(there.asked(layer), torch.tensor([token], device=there.last.device), there.mask)[:, :, 0]


def mixed_rows(there: Walk, layer: int, row: Float[Tensor, "B N"]) -> Float[Tensor, "B h N"]:
    """The attention of all tokens, weighted by a row, head by head."""
    seen = there.asked(layer)
    parts = (torch.einsum("bq,bhqn->bhn", row[:, part], weights(seen, part, there.mask)) for part in in_chunks(seen))
    return torch.stack(list(parts)).sum(dim=0)


def fused(each: Float[Tensor, "B h ..."], heads: Heads) -> Float[Tensor, "B ..."]:
    """One head, or the mean, the largest or the smallest weight of all."""
    if isinstance(heads, int):
        return each[:, heads]
    return each.mean(dim=1) if heads == "mean" else each.amax(dim=1) if heads == "max" else each.amin(dim=1)


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
    """Attention rollout (Abnar & Zuidema 2020): the product over the layers of ½ (A + 1), its rows scaled to sum to one.

    `heads` makes one matrix A of a layer's heads; of it, the `discard_ratio` of smallest weights is set to zero first. What
    the head reads of the product's rows is the map. It knows no class, and takes every layer for linear.
    """
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"discard_ratio {discard_ratio} must be at least 0 and below 1")
    with scene(model, images, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as seen:
        there = walk(seen, layers=range(seen.model.config.depth))
        row, note = starting_row(there, query)
        for layer in reversed(range(seen.model.config.depth)):
            row = through(there.asked(layer), row, there.mask, heads=heads, discard_ratio=discard_ratio)
        kept = f", smallest {discard_ratio:.0%} left out" if discard_ratio else ""
        return maps_of(seen, row, method="rollout", labels=f"all layers, {heads} of heads{kept}", notes=(note,))


def starting_row(there: Walk, query: Query) -> tuple[Float[Tensor, "B N"], str]:
    """The tokens that ask: what the head reads, or one patch."""
    if query == "cls":
        return reader(there)
    row = torch.zeros(there.last.shape[:2], device=there.last.device)
    row[:, there.scene.token(query)] = 1.0
    return row, ""


def through(
    seen: Asked, row: Float[Tensor, "B N"], mask: Tensor | None, *, heads: Fusion, discard_ratio: float
) -> Float[Tensor, "B N"]:
    """A row times one layer's ½ (A + 1), its rows scaled to sum to one; a part of the matrix at a time."""
    threshold = None
    if discard_ratio:  # the smallest of the whole matrix
        flat = torch.cat([fused(weights(seen, part, mask), heads) for part in in_chunks(seen)], dim=1).flatten(1)
        count = int(discard_ratio * flat.shape[1])
        threshold = flat.kthvalue(count, dim=1).values[:, None, None] if count else None
        del flat
    result = torch.zeros_like(row)
    for part in in_chunks(seen):
        matrix = fused(weights(seen, part, mask), heads)  # (B, q, N)
        if threshold is not None:
            matrix = matrix * (matrix > threshold)
        own = row[:, part] / (matrix.sum(dim=2) + 1)
        result += torch.einsum("bq,bqn->bn", own, matrix)
        result[:, part] += own
    return result

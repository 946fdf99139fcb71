"""Attention of any layer and head."""

# B batch · h heads · Q queries · N tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Images, Query, Scene, layer_count, model_name, open_scene, require_head, require_layer
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.passes import ForwardPass, attention_rows, forward_pass, head_reading, query_chunks
from vitrail.settings import Pair

METHOD = "attention"
"""Its row of `METHODS`."""
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
    """Return one token's attention weights on the patches; prefix tokens have the rest of the sum of 1.

    `heads` is one head, or the mean, the largest or the smallest of all; `query` the class token, or the patch that holds a
    pixel (x, y). Without a class token, "cls" is what the head reads instead: the rows of all patches, weighted as it weighs
    them. A negative layer counts from the end. Of a model without global attention, the layers are those of class attention,
    which have no other query. Raises ValueError for a layer, head or query that does not exist, and for a model without either.
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
    """Return what `attention` returns for several layers and heads, from one pass: layer by layer, head by head."""
    with open_scene(model, images, method=METHOD, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as scene:
        model = scene.model
        everything = range(layer_count(model, rows=True))
        layer_indices = everything if layers == "all" else [require_layer(model, layer, rows=True) for layer in layers]
        if not model.global_attention:
            return _class_attention(scene, layer_indices, heads, query)
        count = scene.vit.attention_heads()
        all_heads = _checked(heads, count)
        token = None if query == "cls" else scene.token(query)
        if query == "cls" and scene.vit.config.class_token:
            token = 0
        forward = forward_pass(scene, layers=layer_indices, to_the_end=token is None)
        row, note = head_reading(forward) if token is None else (None, "")
        source = f"patch at {query[0]},{query[1]}" if query != "cls" else "class token" if token == 0 else "head's view"
        result = []
        for layer in layer_indices:
            per_head = _token_rows(forward, layer, token) if row is None else mixed_rows(forward, layer, row)  # (B, h, N)
            for head in all_heads:
                label = f"layer {layer}, {_head_label(head, count)}, {source}"
                result.append(maps_of(scene, fuse_heads(per_head, head), method=METHOD, labels=label, notes=(note,)))
        return result


def _class_attention(scene: Scene, layers: Sequence[int], heads: Sequence[Heads] | Literal["all"], query: Query) -> list[Maps]:
    """Return the class token's attention in layers of class attention. Raises ValueError for another query."""
    if query != "cls":
        where = f"query {query[0]},{query[1]}"
        raise ValueError(
            f"{where}: of {model_name(scene.model)} only the class token's attention is shown; leave the query out"
        )
    rows, result = scene.model.class_attention(scene.images), []
    for layer in layers:
        per_head = rows[layer].float()  # (B, h, N)
        count = per_head.shape[1]
        for head in _checked(heads, count):
            label = f"class attention {layer}, {_head_label(head, count)}"
            result.append(maps_of(scene, fuse_heads(per_head, head), method=METHOD, labels=label))
    return result


def _checked(heads: Sequence[Heads] | Literal["all"], count: int) -> Sequence[Heads]:
    """Return the heads. Raises ValueError for one that does not exist."""
    chosen: Sequence[Heads] = range(count) if heads == "all" else heads
    for head in chosen:
        if isinstance(head, int):
            require_head(head, heads=count)
    return chosen


def _head_label(head: Heads, count: int) -> str:
    return f"head {head}" if isinstance(head, int) else f"{head} of {count} heads"


def fuse_heads(per_head: Float[Tensor, "B h ..."], heads: Heads) -> Float[Tensor, "B ..."]:
    """Return one head's weights, or the mean, the largest or the smallest of all."""
    if isinstance(heads, int):
        return per_head[:, heads]
    return per_head.mean(dim=1) if heads == "mean" else per_head.amax(dim=1) if heads == "max" else per_head.amin(dim=1)


def _token_rows(forward: ForwardPass, layer: int, token: int | None) -> Float[Tensor, "B h N"]:
    """Return one token's attention weights, head by head."""
    assert token is not None
    queries = torch.tensor([token], device=forward.last.device)
    return attention_rows(forward.queries_and_keys(layer), queries, forward.mask)[:, :, 0]


def mixed_rows(forward: ForwardPass, layer: int, row: Float[Tensor, "B N"]) -> Float[Tensor, "B h N"]:
    """Return the attention weights of all tokens, summed with the weights of a row, head by head."""
    attended = forward.queries_and_keys(layer)
    chunks = (
        torch.einsum("bq,bhqn->bhn", row[:, chunk], attention_rows(attended, chunk, forward.mask))
        for chunk in query_chunks(attended)
    )
    return torch.stack(list(chunks)).sum(dim=0)

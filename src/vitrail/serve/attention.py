"""Attention of one image, compactly: quantised rows of many layers and all heads, in one message for the page.

The message is little-endian:

    4 bytes         "VATT"
    uint32          length of the JSON header in bytes, a multiple of 4
    JSON            layers, heads, queries, tokens, prefix, grid, patch, size, reading, note
    float32 (Q)     weight of each query in the first view: the class token, or what the head reads where there is none
    float32 (l h Q) scale of each row: its largest weight
    uint8 (l h Q N) weights, as parts of 255 of their row's scale
    uint8 (H W 3)   the image as the model sees it; left out where the model's normalisation is unknown
"""

# B batch · l layers of a message · h heads · Q queries · N tokens

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from vitrail.explain import draw
from vitrail.explain.inputs import (
    Images,
    Scene,
    backbone_of,
    has_class_token,
    layer_count,
    model_name,
    open_scene,
    require_finite_output,
    require_layer,
)
from vitrail.explain.methods.attention import METHOD, mixed_rows
from vitrail.explain.passes import ForwardPass, attention_rows, forward_pass, head_reading, query_chunks
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair, pair

MAGIC = b"VATT"
MAX_BYTES = 16 * 2**20
"""Weights of one message, in bytes: all layers of L/16 at 224 px (14.9 MB), five layers of B/16 at 384 px at a time."""
LEVELS = 255

Queries = Literal["all", "first"]
"""All tokens; or the first view alone: the class token's row, or what the head reads where there is none."""


@dataclass(frozen=True, kw_only=True)
class AttentionSize:
    """Layers, heads and tokens of a model's attention at its own image size, and how it comes to the page."""

    layers: int
    heads: int
    grid: Pair
    prefix: int
    """Tokens before the patches."""
    queries: Queries
    """"first" where one layer's rows of all tokens are more than a message holds, and where only a class token looks."""
    layers_per_message: int
    note: str
    """Reason why only one row is shown; "" where all are."""


def attention_size(model: Backbone) -> AttentionSize | None:
    """Return the size of a model's attention; None for a model without attention over the whole image."""
    layers = layer_count(model, rows=True)
    if model.global_attention:
        heads, prefix = model.attention_heads(), int(model.prefix_tokens)  # type: ignore[arg-type]
        side, patch = pair(model.config.img_size), pair(model.config.patch_size)
        grid = (side[0] // patch[0], side[1] // patch[1])
    elif layers:
        weight = next(model.parameters())
        blank = weight.new_zeros(1, model.config.in_channels, *pair(model.config.img_size))
        with torch.no_grad():
            features, rows = model.features(blank), model.class_attention(blank)
        assert features.grid is not None
        heads, prefix, grid = rows[0].shape[1], features.prefix, features.grid
    else:
        return None
    tokens = prefix + grid[0] * grid[1]
    row_bytes = heads * tokens
    queries, note = fitting_queries(model, row_bytes=row_bytes, tokens=tokens)
    per_layer = row_bytes * (tokens if queries == "all" else 1)
    return AttentionSize(
        layers=layers,
        heads=heads,
        grid=grid,
        prefix=prefix,
        queries=queries,
        layers_per_message=max(1, min(layers, MAX_BYTES // per_layer)),
        note=note,
    )


def fitting_queries(model: Backbone, *, row_bytes: int, tokens: int) -> tuple[Queries, str]:
    """Return the queries whose rows of one layer fit into a message, and the reason where these are not all."""
    if not model.global_attention:
        return (
            "first",
            f"In {model_name(model)} only the class token looks at the whole image, so patches have no rows to show.",
        )
    if row_bytes * tokens <= MAX_BYTES:
        return "all", ""
    size = f"{row_bytes * tokens / 1e6:,.0f} MB a layer"
    return "first", f"The rows of all {tokens:,} tokens would be {size}, so only the first view is shown; use smaller images."


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMessage:
    """Quantised attention rows of one image."""

    layers: tuple[int, ...]
    depth: int
    """Layers of the model."""
    queries: Queries
    prefix: int
    has_class_token: bool
    grid: Pair
    patch: Pair
    note: str
    reading: Float32[np.ndarray, " Q"]
    scales: Float32[np.ndarray, "l h Q"]
    weights: UInt8[np.ndarray, "l h Q N"]
    pixels: UInt8[np.ndarray, "H W 3"] | None

    def encode(self) -> bytes:
        """Return the message."""
        _, heads, queries, tokens = self.weights.shape
        header: dict[str, Any] = {
            "layers": self.layers,
            "depth": self.depth,
            "heads": heads,
            "queries": queries,
            "tokens": tokens,
            "prefix": self.prefix,
            "class_token": self.has_class_token,
            "grid": self.grid,
            "patch": self.patch,
            "size": None if self.pixels is None else self.pixels.shape[:2],
            "note": self.note,
        }
        words = json.dumps(header).encode()
        words += b" " * (-len(words) % 4)  # what follows are aligned floats
        parts = [MAGIC, struct.pack("<I", len(words)), words, self.reading.astype("<f4").tobytes()]
        parts += [self.scales.astype("<f4").tobytes(), self.weights.tobytes()]
        parts += [] if self.pixels is None else [self.pixels.tobytes()]
        return b"".join(parts)


def attention_message(
    model: Backbone, image: Images, *, layers: Sequence[int] | None = None, queries: Queries | None = None
) -> AttentionMessage:
    """Compute the attention of one image, of all heads, in some layers (all unless given); negative ones count from the end.

    `queries` are those of `attention_size` unless given. Raises ValueError for a layer that does not exist, for more weights
    than a message holds, for a model without attention over the whole image, and where the weights are not finite.
    """
    backbone = backbone_of(model)
    with open_scene(backbone, image, method=METHOD) as scene:
        depth = layer_count(scene.model, rows=True)
        chosen = tuple(range(depth) if layers is None else [require_layer(scene.model, layer, rows=True) for layer in layers])
        if not chosen:
            raise ValueError(f"there are no layers to show; use some of 0 to {depth - 1}")
        if scene.model.global_attention:
            reading, scales, weights, note = _global_rows(scene, chosen, queries)
        else:
            reading, scales, weights, note = _class_rows(scene, chosen, queries)
        pixels = None if scene.pixels is None else np.asarray(draw.picture(scene.pixels[0]))
        return AttentionMessage(
            layers=chosen,
            depth=depth,
            queries="all" if weights.shape[2] == scene.prefix + scene.grid[0] * scene.grid[1] else "first",
            prefix=scene.prefix,
            has_class_token=has_class_token(scene.model),
            grid=scene.grid,
            patch=scene.patch,
            note=note,
            reading=reading,
            scales=scales,
            weights=weights,
            pixels=pixels,
        )


Rows = tuple[Float32[np.ndarray, " Q"], Float32[np.ndarray, "l h Q"], UInt8[np.ndarray, "l h Q N"], str]


@torch.no_grad()
def _global_rows(scene: Scene, layers: Sequence[int], queries: Queries | None) -> Rows:
    """Return the rows of layers of global attention: of all tokens, or what the head reads of them."""
    heads, tokens = scene.vit.attention_heads(), scene.positions
    fitting, why = fitting_queries(scene.model, row_bytes=heads * tokens, tokens=tokens)
    asked = fitting if queries is None else queries
    count = len(layers) * heads * tokens * (tokens if asked == "all" else 1)
    if count > MAX_BYTES and len(layers) > 1:
        fit = max(1, MAX_BYTES * len(layers) // count)
        raise ValueError(
            f"{len(layers)} layers are {count / 1e6:,.1f} MB, above the {MAX_BYTES / 1e6:,.1f} MB of an answer; ask for {fit}"
        )
    if count > MAX_BYTES:
        raise ValueError(f'{why} Ask for queries "first"')
    forward = forward_pass(scene, layers=layers)
    require_finite_output(forward.last, "output", so="its attention says nothing")
    reading, note = _first_view(forward)
    if asked == "all":
        scales, weights = zip(*(_quantise_chunks(_chunks(forward, layer)) for layer in layers), strict=True)
        return reading[0].float().cpu().numpy(), np.stack(scales), np.stack(weights), note
    scales, weights = zip(*(quantise(_viewed(forward, layer, reading)) for layer in layers), strict=True)
    return np.ones(1, np.float32), np.stack(scales), np.stack(weights), "; ".join(part for part in (note, why) if part)


def _first_view(forward: ForwardPass) -> tuple[Float[Tensor, "1 N"], str]:
    """Return the weight of each query in what is shown at first, as `explain.attention` has it for "cls"; and a note."""
    if not has_class_token(forward.scene.model):
        return head_reading(forward)
    reading = torch.zeros(1, forward.last.shape[1])
    reading[0, 0] = 1
    return reading, ""


def _viewed(forward: ForwardPass, layer: int, reading: Float[Tensor, "1 N"]) -> Float[Tensor, "h 1 N"]:
    """Return the rows of the first view, head by head."""
    if has_class_token(forward.scene.model):
        return attention_rows(forward.queries_and_keys(layer), slice(0, 1), forward.mask)[0]
    return mixed_rows(forward, layer, reading)[0, :, None]


@torch.no_grad()
def _class_rows(scene: Scene, layers: Sequence[int], queries: Queries | None) -> Rows:
    """Return the class token's rows in layers of class attention. Raises ValueError for other queries."""
    if queries == "all":
        raise ValueError(f'in {model_name(scene.model)} only the class token has rows; ask for queries "first"')
    rows = scene.model.class_attention(scene.images)
    require_finite_output(torch.stack([row[0].float() for row in rows]), "class attention", so="it says nothing")
    scales, weights = zip(*(quantise(rows[layer][0, :, None].float()) for layer in layers), strict=True)
    return np.ones(1, np.float32), np.stack(scales), np.stack(weights), ""


def _chunks(forward: ForwardPass, layer: int) -> Iterator[Float[Tensor, "h q N"]]:
    """Yield the attention rows of all tokens, some tokens at a time."""
    attended = forward.queries_and_keys(layer)
    return (attention_rows(attended, chunk, forward.mask)[0] for chunk in query_chunks(attended))


def _quantise_chunks(
    chunks: Iterator[Float[Tensor, "h _ N"]],
) -> tuple[Float32[np.ndarray, "h Q"], UInt8[np.ndarray, "h Q N"]]:
    """Quantise rows that come some queries at a time, so that their floats are never in memory together."""
    scales, weights = zip(*(quantise(chunk) for chunk in chunks), strict=True)
    return np.concatenate(scales, axis=1), np.concatenate(weights, axis=1)


def quantise(rows: Float[Tensor, "h q N"]) -> tuple[Float32[np.ndarray, "h q"], UInt8[np.ndarray, "h q N"]]:
    """Return each row's largest weight, and its weights as parts of 255 of it: off by at most 1/510 of the scale."""
    scales = rows.amax(dim=-1)
    parts = rows / scales.clamp(min=torch.finfo(rows.dtype).tiny)[..., None] * LEVELS
    return scales.float().cpu().numpy(), parts.round().to(torch.uint8).cpu().numpy()

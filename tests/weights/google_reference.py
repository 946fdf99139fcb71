"""Google's flax ViT in NumPy, by the formulas of the papers, for checkpoints made of random numbers.

Dosovitskiy et al. 2021 (equations 1 to 4; GELU by its tanh form, as JAX has it), Beyer et al. 2022 (no class token, fixed
positions) and Zhai et al. 2022 (attention pooling). Names and layouts are those of the published .npz files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Mapping[str, Array]


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x: Array, w: Weights, name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]


def dense(x: Array, w: Weights, name: str) -> Array:
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def attention(queries: Array, tokens: Array, w: Weights, name: str) -> Array:
    """Kernels of query, key and value are (D, h, d), that of the way out is (h, d, D)."""

    def project(x: Array, part: str) -> Array:
        return np.einsum("bnd,dhe->bhne", x, w[f"{name}/{part}/kernel"]) + w[f"{name}/{part}/bias"][:, None]

    q, k, v = project(queries, "query"), project(tokens, "key"), project(tokens, "value")
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    seen = weights / weights.sum(-1, keepdims=True) @ v  # (B, h, N, d)
    return np.einsum("bhne,hed->bnd", seen, w[f"{name}/out/kernel"]) + w[f"{name}/out/bias"]


def mlp(x: Array, w: Weights, name: str) -> Array:
    return dense(gelu(dense(x, w, f"{name}/Dense_0")), w, f"{name}/Dense_1")


def sincos(height: int, width: int, dim: int) -> Array:
    omega = 1 / 10_000 ** (np.arange(dim // 4) / (dim // 4 - 1))
    y, x = (axis.reshape(-1, 1) * omega for axis in np.mgrid[:height, :width])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)[None]


def forward(w: Weights, images: Array, *, pool: str, big_vision: bool) -> tuple[Array, Array, Array]:
    """Logits, embedding and tokens of images (B, C, H, W). `pool` is tok, gap or map."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    kernel = w["embedding/kernel"]  # (P, P, C, D)
    p, b, (height, width) = kernel.shape[0], len(images), (side // kernel.shape[0] for side in images.shape[2:])
    patches = images.reshape(b, -1, height, p, width, p).transpose(0, 2, 4, 3, 5, 1).reshape(b, height * width, -1)
    x = patches @ kernel.reshape(-1, kernel.shape[-1]) + w["embedding/bias"]
    cls = [np.broadcast_to(w["cls"], (b, 1, x.shape[-1]))] if "cls" in w else []
    if big_vision:  # the class token has no position
        x = np.concatenate([*cls, x + w.get("pos_embedding", sincos(height, width, x.shape[-1]))], axis=1)
    else:
        x = np.concatenate([*cls, x], axis=1) + w["Transformer/posembed_input/pos_embedding"]
    numbers = (0, 1, 0) if big_vision else (1, 2, 3)
    for index in range(sum(name.endswith("LayerNorm_0/scale") and "encoderblock_" in name for name in w)):
        block = f"Transformer/encoderblock_{index}"
        y = norm(x, w, f"{block}/LayerNorm_0")
        x = x + attention(y, y, w, f"{block}/MultiHeadDotProductAttention_{numbers[0]}")
        x = x + mlp(norm(x, w, f"{block}/LayerNorm_{numbers[1]}"), w, f"{block}/MlpBlock_{numbers[2]}")
    tokens = norm(x, w, "Transformer/encoder_norm")
    if pool == "map":
        probe = np.broadcast_to(w["MAPHead_0/probe"], (b, 1, tokens.shape[-1]))
        x = attention(probe, tokens, w, "MAPHead_0/MultiHeadDotProductAttention_0")
        embedding = (x + mlp(norm(x, w, "MAPHead_0/LayerNorm_0"), w, "MAPHead_0/MlpBlock_0"))[:, 0]
    else:
        embedding = tokens[:, 0] if pool == "tok" else tokens.mean(axis=1)
    if "pre_logits/kernel" in w:
        embedding = np.tanh(dense(embedding, w, "pre_logits"))
    return dense(embedding, w, "head") if "head/kernel" in w else embedding, embedding, tokens


def random_weights(
    *, big_vision: bool, pool: str, pre_logits: bool = False, positions: bool = True, dim: int = 48, heads: int = 3
) -> dict[str, Array]:
    """A checkpoint's arrays without a prefix: two blocks, images of 16 pixels in patches of 4, 7 classes."""
    rng, hidden, rows, patch, depth, classes = np.random.default_rng(0), 2 * dim, 16, 4, 2, 7
    made: dict[str, tuple[int, ...]] = {"embedding/kernel": (patch, patch, 3, dim), "embedding/bias": (dim,)}

    def layer(name: str, *shape: int, bias: tuple[int, ...] | None = None) -> None:
        made[f"{name}/kernel"], made[f"{name}/bias"] = shape, bias or shape[-1:]

    def normed(name: str) -> None:
        made[f"{name}/scale"] = made[f"{name}/bias"] = (dim,)

    def attending(name: str) -> None:
        for part in ("query", "key", "value"):
            layer(f"{name}/{part}", dim, heads, dim // heads, bias=(heads, dim // heads))
        layer(f"{name}/out", heads, dim // heads, dim)

    def two_layers(name: str) -> None:
        layer(f"{name}/Dense_0", dim, hidden)
        layer(f"{name}/Dense_1", hidden, dim)

    attention_number, norm_number, mlp_number = (0, 1, 0) if big_vision else (1, 2, 3)
    for block in (f"Transformer/encoderblock_{i}" for i in range(depth)):
        normed(f"{block}/LayerNorm_0")
        attending(f"{block}/MultiHeadDotProductAttention_{attention_number}")
        normed(f"{block}/LayerNorm_{norm_number}")
        two_layers(f"{block}/MlpBlock_{mlp_number}")
    normed("Transformer/encoder_norm")
    if pool == "tok":
        made["cls"] = (1, 1, dim)
    if pool == "map":
        made["MAPHead_0/probe"] = (1, 1, dim)
        attending("MAPHead_0/MultiHeadDotProductAttention_0")
        normed("MAPHead_0/LayerNorm_0")
        two_layers("MAPHead_0/MlpBlock_0")
    if positions:
        name = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
        made[name] = (1, rows + (pool == "tok" and not big_vision), dim)
    if pre_logits:
        layer("pre_logits", dim, dim)
    layer("head", dim, classes)
    return {
        name: (name.endswith("/scale") + 0.15 * rng.standard_normal(shape)).astype(np.float32) for name, shape in made.items()
    }


def scanned(weights: Weights) -> dict[str, Array]:
    """As big_vision's scan over blocks writes it: one array for all blocks, with an axis for the depth."""
    made = {name: value for name, value in weights.items() if "encoderblock_" not in name}
    for name in (name for name in weights if "encoderblock_0/" in name):
        blocks = [name.replace("_0/", f"_{i}/", 1) for i in range(len(weights))]
        made[name.replace("encoderblock_0", "encoderblock")] = np.stack([weights[one] for one in blocks if one in weights])
    return made

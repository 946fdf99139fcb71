"""Tiny home-made ViTs, written for these tests: parameter names and computation of well-known tutorials, and of nobody's."""

# B batch · N tokens · D width · h heads · P patch

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peers import CLASSES, DEPTH, DIM, HEADS, PATCH, SIDE
from torch import Tensor, nn

HIDDEN, PATCHES, PIXELS = 2 * DIM, (SIDE // PATCH) ** 2, 3 * PATCH**2


def cut(images: Tensor, order: str = "c p1 p2") -> Tensor:
    """Patches as rows of pixels, (B, N, 3 P P), in an order."""
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    return patches if order == "c p1 p2" else patches.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)


def heads_of(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)  # (B, h, N, d)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: str = "head") -> Tensor:
    """Attention (B, N, D) of (B, h, N, d), with one of the scales that people use."""
    width = q.shape[-1] * HEADS
    factor = {"head": q.shape[-1] ** -0.5, "width": width**-0.5, "after": 1.0, "none": 1.0}[scale]
    maps = (q @ k.transpose(-1, -2) * factor).softmax(-1)
    maps = maps / width**0.5 if scale == "after" else maps
    return (maps @ v).transpose(1, 2).flatten(2)


def mlp(hidden: int = HIDDEN, activation: Callable[[], nn.Module] = nn.GELU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, hidden), activation(), nn.Dropout(0.1), nn.Linear(hidden, DIM), nn.Dropout(0.1))


class Table(nn.Module):
    """Class token and positions, under names of one's own."""

    def __init__(self, stem: str, token: str | None, positions: str, *, flat: bool = False) -> None:
        super().__init__()
        self.names = stem, token, positions
        if token:
            setattr(self, token, nn.Parameter(torch.zeros(*(() if flat else (1, 1)), DIM)))
        rows = PATCHES + bool(token)
        setattr(self, positions, nn.Parameter(torch.zeros(*(() if flat else (1,)), rows, DIM)))

    def tokens(self, patches: Tensor) -> Tensor:
        _, token, positions = self.names
        if token:
            patches = torch.cat([getattr(self, token).reshape(1, 1, -1).expand(len(patches), -1, -1), patches], dim=1)
        return patches + getattr(self, positions)


def convolved(conv: nn.Module, images: Tensor) -> Tensor:
    return conv(images).flatten(2).transpose(1, 2)


# --------------------------------------------------------------------------------------------------------------------
# Dive into Deep Learning


class D2lBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention, self.mlp = nn.Module(), nn.Module()
        for letter in "qkvo":
            self.attention.add_module(f"W_{letter}", nn.Linear(DIM, DIM, bias=False))
        self.mlp.add_module("dense1", nn.Linear(DIM, HIDDEN))
        self.mlp.add_module("dense2", nn.Linear(HIDDEN, DIM))

    def forward(self, x: Tensor) -> Tensor:
        a: Any = self.attention
        m: Any = self.mlp
        n = self.ln1(x)
        x = x + a.W_o(attend(*(heads_of(project(n)) for project in (a.W_q, a.W_k, a.W_v))))
        return x + m.dense2(F.gelu(m.dense1(self.ln2(x))))


class D2l(Table):
    def __init__(self) -> None:
        super().__init__("patch_embedding", "cls_token", "pos_embedding")
        self.patch_embedding: Any = nn.Module()
        self.patch_embedding.conv = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.blks = nn.Sequential(*(D2lBlock() for _ in range(DEPTH)))
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blks(self.tokens(convolved(self.patch_embedding.conv, images)))[:, 0])


# --------------------------------------------------------------------------------------------------------------------
# University of Amsterdam


class UvaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(DIM)
        self.attn = nn.MultiheadAttention(DIM, HEADS)
        self.layer_norm_2 = nn.LayerNorm(DIM)
        self.linear = mlp()

    def forward(self, x: Tensor) -> Tensor:  # (N, B, D)
        n = self.layer_norm_1(x)
        x = x + self.attn(n, n, n)[0]
        return x + self.linear(self.layer_norm_2(x))


class Uva(Table):
    def __init__(self) -> None:
        super().__init__("input_layer", "cls_token", "pos_embedding")
        self.input_layer = nn.Linear(PIXELS, DIM)
        self.transformer = nn.Sequential(*(UvaBlock() for _ in range(DEPTH)))
        self.mlp_head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.input_layer(cut(images))).transpose(0, 1)
        return self.mlp_head(self.transformer(x)[0])


# --------------------------------------------------------------------------------------------------------------------
# PyTorch paper replicating


class ReplicatingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.msa_block: Any = nn.Module()
        self.msa_block.layer_norm = nn.LayerNorm(DIM)
        self.msa_block.multihead_attn = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.mlp_block: Any = nn.Module()
        self.mlp_block.layer_norm = nn.LayerNorm(DIM)
        self.mlp_block.mlp = mlp()

    def forward(self, x: Tensor) -> Tensor:
        n = self.msa_block.layer_norm(x)
        x = self.msa_block.multihead_attn(n, n, n, need_weights=False)[0] + x
        return self.mlp_block.mlp(self.mlp_block.layer_norm(x)) + x


class Replicating(Table):
    def __init__(self) -> None:
        super().__init__("patch_embedding", "class_embedding", "position_embedding")
        self.patch_embedding: Any = nn.Module()
        self.patch_embedding.patcher = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.transformer_encoder = nn.Sequential(*(ReplicatingBlock() for _ in range(DEPTH)))
        self.classifier = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.transformer_encoder(self.tokens(convolved(self.patch_embedding.patcher, images)))[:, 0])


# --------------------------------------------------------------------------------------------------------------------
# vision-transformer-from-scratch, by heads and as one projection


class OneHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(DIM, DIM // HEADS) for _ in range(3))


class FromScratchAttention(nn.Module):
    def __init__(self, *, by_head: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(OneHead() for _ in range(HEADS)) if by_head else None
        self.qkv_projection = None if by_head else nn.Linear(DIM, 3 * DIM)
        self.output_projection = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        if self.qkv_projection is not None:
            q, k, v = self.qkv_projection(x).chunk(3, dim=-1)
        else:
            heads: Any = self.heads
            q, k, v = (torch.cat([getattr(h, n)(x) for h in heads], dim=-1) for n in ("query", "key", "value"))
        return self.output_projection(attend(heads_of(q), heads_of(k), heads_of(v)))


class FromScratchBlock(nn.Module):
    def __init__(self, *, by_head: bool) -> None:
        super().__init__()
        self.attention = FromScratchAttention(by_head=by_head)
        self.layernorm_1 = nn.LayerNorm(DIM)
        self.mlp: Any = nn.Module()
        self.mlp.dense_1, self.mlp.dense_2 = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)
        self.layernorm_2 = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_1(x))
        return x + self.mlp.dense_2(F.gelu(self.mlp.dense_1(self.layernorm_2(x)), approximate="tanh"))


class FromScratch(nn.Module):
    def __init__(self, *, by_head: bool = False) -> None:
        super().__init__()
        self.embedding: Any = Table("patch_embeddings", "cls_token", "position_embeddings")
        self.embedding.patch_embeddings = nn.Module()
        self.embedding.patch_embeddings.projection = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.encoder: Any = nn.Module()
        self.encoder.blocks = nn.ModuleList(FromScratchBlock(by_head=by_head) for _ in range(DEPTH))
        self.classifier = nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        x = self.embedding.tokens(convolved(self.embedding.patch_embeddings.projection, images))
        for block in self.encoder.blocks:
            x = block(x)
        return self.classifier(x[:, 0]), None


# --------------------------------------------------------------------------------------------------------------------
# ViT-pytorch


class FineTunedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.ffn, self.attn = nn.Module(), nn.Module()
        self.ffn.fc1, self.ffn.fc2 = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)  # type: ignore[assignment]
        for name in ("query", "key", "value", "out"):
            self.attn.add_module(name, nn.Linear(DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        a: Any = self.attn
        f: Any = self.ffn
        n = self.attention_norm(x)
        x = x + a.out(attend(heads_of(a.query(n)), heads_of(a.key(n)), heads_of(a.value(n))))
        return x + f.fc2(F.gelu(f.fc1(self.ffn_norm(x))))


class FineTuned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer: Any = nn.Module()
        self.transformer.embeddings = Table("patch_embeddings", "cls_token", "position_embeddings")
        self.transformer.embeddings.patch_embeddings = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layer = nn.ModuleList(FineTunedBlock() for _ in range(DEPTH))
        self.transformer.encoder.encoder_norm = nn.LayerNorm(DIM, eps=1e-6)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        t = self.transformer
        x = t.embeddings.tokens(convolved(t.embeddings.patch_embeddings, images))
        for block in t.encoder.layer:
            x = block(x)
        return self.head(t.encoder.encoder_norm(x)[:, 0]), []


# --------------------------------------------------------------------------------------------------------------------
# Modules in modules: residual sums around nn.Sequential


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class ResidualAttention(nn.Module):
    def __init__(self, *, fused: bool, scale: str) -> None:
        super().__init__()
        self.scale, self.num_heads = scale, HEADS
        names = ("qkv",) if fused else ("keys", "queries", "values")
        for name in names:
            self.add_module(name, nn.Linear(DIM, 3 * DIM if fused else DIM))
        self.projection = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).unflatten(2, (HEADS, -1, 3)).permute(4, 0, 2, 1, 3)  # (h d qkv)
        else:
            q, k, v = (heads_of(getattr(self, name)(x)) for name in ("queries", "keys", "values"))
        return self.projection(attend(q, k, v, self.scale))


class Turned(nn.Module):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) if self.order == "conv" else cut(x, self.order)


class ResidualStem(Table):
    def __init__(self, *, linear: bool) -> None:
        super().__init__("projection", "cls_token", "positions")
        self.positions = nn.Parameter(torch.zeros(PATCHES + 1, DIM))
        steps: tuple[nn.Module, nn.Module] = nn.Conv2d(3, DIM, PATCH, PATCH), Turned("conv")
        self.projection = nn.Sequential(*((Turned("p1 p2 c"), nn.Linear(PIXELS, DIM)) if linear else steps))

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.projection(images))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def residual(*, linear: bool = False, fused: bool = True, scale: str = "after") -> nn.Sequential:
    blocks = (
        nn.Sequential(
            Residual(nn.Sequential(nn.LayerNorm(DIM), ResidualAttention(fused=fused, scale=scale), nn.Dropout(0.1))),
            Residual(nn.Sequential(nn.LayerNorm(DIM), mlp()[:4], nn.Dropout(0.1))),
        )
        for _ in range(DEPTH)
    )
    head = nn.Sequential(Mean(), nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES))
    return nn.Sequential(ResidualStem(linear=linear), nn.Sequential(*blocks), head)


# --------------------------------------------------------------------------------------------------------------------
# Nobody's


class OfTorch(Table):
    """nn.TransformerEncoder between a convolution and a linear head."""

    def __init__(
        self, *, norm_first: bool = True, activation: str = "gelu", last_norm: bool = True, token: bool = True
    ) -> None:
        super().__init__("to_patches", "summary" if token else None, "where_to")
        self.to_patches = nn.Conv2d(3, DIM, PATCH, PATCH)
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, HIDDEN, activation=activation, batch_first=True, norm_first=norm_first, dropout=0.0
        )
        self.enc = nn.TransformerEncoder(
            layer, DEPTH, norm=nn.LayerNorm(DIM) if last_norm else None, enable_nested_tensor=False
        )
        self.species = nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.enc(self.tokens(convolved(self.to_patches, images)))
        return self.species(x[:, 0] if self.names[1] else x.mean(1))


class ScaledBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.self_attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.feed_forward = mlp()
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((DIM,), 0.1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm1(x)
        x = x + self.gamma1 * self.self_attention(n, n, n)[0]
        return x + self.gamma2 * self.feed_forward(self.norm2(x))


class Scaled(Table):
    """`patch_embed.projection`, `transformer_layers.N`, `gamma1`."""

    def __init__(self) -> None:
        super().__init__("patch_embed", "cls_token", "pos_embed")
        self.patch_embed: Any = nn.Module()
        self.patch_embed.projection = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.transformer_layers = nn.ModuleList(ScaledBlock() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(convolved(self.patch_embed.projection, images))
        for layer in self.transformer_layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class OddAttention(nn.Module):
    """One projection of q, k and v in any order, and any scale."""

    def __init__(self, order: str, scale: str) -> None:
        super().__init__()
        self.order, self.scale = order.split(), scale
        self.mix, self.back = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        [letters] = [axis for axis in self.order if len(axis) == 3]
        x = self.mix(x).unflatten(2, [{"h": HEADS, "d": -1, letters: 3}[axis] for axis in self.order])
        x = x.movedim([2 + self.order.index(axis) for axis in (letters, "h", "d")], [0, 2, 4])  # (3, B, h, N, d)
        q, k, v = (x[letters.index(letter)] for letter in "qkv")
        return self.back(attend(q, k, v, self.scale))


class OddBlock(nn.Module):
    """Its second norm is registered first, and MLP and attention have the same shapes."""

    def __init__(self, order: str, scale: str, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.b, self.a = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.inner = OddAttention(order, scale)
        self.x, self.y = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.inner(self.a(x))
        return x + self.y(self.activation(self.x(self.b(x))))


class Odd(Table):
    """Flattened patches, blocks from 1 on, mean of the tokens, and then a norm."""

    def __init__(
        self,
        *,
        patch_order: str = "c p1 p2",
        qkv_order: str = "qkv h d",
        scale: str = "head",
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__("start", None, "place")
        self.patch_order, self.num_heads = patch_order, HEADS
        self.start = nn.Linear(PIXELS, DIM)
        for index in range(1, DEPTH + 1):
            self.add_module(f"stack{index}", OddBlock(qkv_order, scale, activation))
        self.end, self.out = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(self.start(cut(images, self.patch_order)))
        for index in range(1, DEPTH + 1):
            x = getattr(self, f"stack{index}")(x)
        return self.out(self.end(x.mean(1)))

"""CvT, the convolutional vision Transformer (Wu et al. 2021): a pyramid of stages without positions.

    images (B, C, H, W) -> stages: token embedding by convolution -> blocks (the last stage with a class token)
                        -> norm -> head -> logits (B, K)

State-dict keys are those of the paper's code, as its published files have them. Attention is scaled by the width of the stage,
as there, and not by the width of a head.
"""

# B batch · C channels · H W image, or feature map · D width of a stage · h heads · d = D / h
# T class tokens: 1 in the last stage, else 0 · N tokens = T + H W · M keys = T + those of a smaller map · K classes

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.activations import GELUS
from vitrail.models.attention import attend, attention_weights
from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.mlp import Mlp
from vitrail.models.recompute import recomputed
from vitrail.settings import Pair, configured
from vitrail.settings.cvt import CvtConfig

Tokens = Float[Tensor, "B N D"]
Map = Float[Tensor, "B D H W"]


class Geometry(NamedTuple):
    """Kernel, stride and padding of a convolution that embeds tokens."""

    kernel: int
    stride: int
    padding: int


FIRST, LATER = Geometry(7, 4, 2), Geometry(3, 2, 1)
"""Token embedding of the first stage, and of all others (table 2)."""


# --------------------------------------------------------------------------------------------------------------------
# The block


class ConvProjection(nn.Module):
    """Depth-wise convolution with batch norm, before the linear projection to query, key or value (equation 2)."""

    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, bias=False, groups=dim)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Map, cls: Float[Tensor, "B T D"]) -> Float[Tensor, "B n D"]:
        """Return the class tokens as they are, and the convolved map as tokens."""
        tokens = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        return torch.cat([cls, tokens], dim=1) if cls.shape[1] else tokens


class ConvAttention(nn.Module):
    """Self-attention on convolved queries, keys and values: softmax(q kᵀ / √D) v (equation 1)."""

    def __init__(self, cfg: CvtConfig, stage: int) -> None:
        super().__init__()
        dim, self.num_heads = cfg.embed_dims[stage], cfg.num_heads[stage]
        self.conv_proj_q = ConvProjection(dim, stride=1)
        self.conv_proj_k = ConvProjection(dim, stride=cfg.kv_stride)
        self.conv_proj_v = ConvProjection(dim, stride=cfg.kv_stride)
        self.proj_q = Linear(dim, dim, bias=cfg.qkv_bias)
        self.proj_k = Linear(dim, dim, bias=cfg.qkv_bias)
        self.proj_v = Linear(dim, dim, bias=cfg.qkv_bias)
        self.attn_drop_rate = cfg.attn_drop_rate
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens, grid: Pair, kept: list[Tensor] | None = None) -> Tokens:
        image, cls = map_and_class(x, grid)
        q = self.heads(self.proj_q(self.conv_proj_q(image, cls))) * self.num_heads**-0.5  # (B, h, N, d); `attend` divides by √d
        k = self.heads(self.proj_k(self.conv_proj_k(image, cls)))  # (B, h, M, d)
        v = self.heads(self.proj_v(self.conv_proj_v(image, cls)))  # (B, h, M, d)
        if kept is not None:
            weights = attention_weights(q[:, :, :1], k, None)[:, :, 0]  # (B, h, M)
            kept.append(spread_keys(weights, grid, stride=self.conv_proj_k.stride))
        out = attend(q, k, v, None, dropout=self.attn_drop_rate if self.training else 0.0)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))  # (B, N, D)

    def heads(self, x: Float[Tensor, "B n D"]) -> Float[Tensor, "B h n d"]:
        """Split the width into heads."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def map_and_class(x: Tokens, grid: Pair) -> tuple[Map, Float[Tensor, "B T D"]]:
    """Return the tokens on the grid as a map, and those before them."""
    cls, x = x.split([x.shape[1] - grid[0] * grid[1], grid[0] * grid[1]], dim=1)
    return x.transpose(1, 2).unflatten(2, grid), cls


def spread_keys(weights: Float[Tensor, "B h M"], grid: Pair, *, stride: int) -> Float[Tensor, "B h N"]:
    """Share each key's weight evenly among the positions that it stands for, `stride` down and across; sums stay."""
    down, across = (-(-side // stride) for side in grid)
    keys = weights[..., weights.shape[-1] - down * across :].unflatten(-1, (down, across))
    for axis, side in zip((-2, -1), grid, strict=True):
        keys = keys.repeat_interleave(stride, axis).narrow(axis, 0, side)
        counts = torch.arange(side, device=keys.device) // stride
        share = 1 / counts.bincount()[counts]  # fewer positions for the last key of a side that the stride does not divide
        keys = keys * (share[:, None] if axis == -2 else share).to(keys.dtype)
    return torch.cat([weights[..., : weights.shape[-1] - down * across], keys.flatten(-2)], dim=-1)


class CvtBlock(nn.Module):
    """Pre-norm block on tokens that lie on a grid, behind the class token if there is one (section 3.2)."""

    def __init__(self, cfg: CvtConfig, stage: int, *, drop_path: float) -> None:
        super().__init__()
        dim = cfg.embed_dims[stage]
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = ConvAttention(cfg, stage)
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(dim, round(cfg.mlp_ratio * dim), drop=cfg.proj_drop_rate, gelu=GELUS[cfg.mlp])
        self.drop_path = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def forward(self, x: Tokens, grid: Pair, kept: list[Tensor] | None = None) -> Tokens:
        """Apply the block; `kept` collects the first token's attention weights, (B, h, N)."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid, kept))  # z' = MSA(LN(z)) + z
        return x + self.drop_path(self.mlp(self.norm2(x)))  # z = MLP(LN(z')) + z'


# --------------------------------------------------------------------------------------------------------------------
# The stage


class ConvEmbed(nn.Module):
    """Token embedding: a convolution whose kernels overlap, and a norm (section 3.1)."""

    def __init__(self, channels: int, dim: int, geometry: Geometry, *, eps: float) -> None:
        super().__init__()
        kernel, stride, padding = geometry
        self.proj = nn.Conv2d(channels, dim, kernel_size=kernel, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Tokens, Pair]:
        x = self.proj(x)  # (B, D, H, W) of this stage
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class CvtStage(nn.Module):
    """Token embedding and blocks at one resolution."""

    def __init__(self, cfg: CvtConfig, stage: int) -> None:
        super().__init__()
        channels, geometry = (cfg.embed_dims[stage - 1], LATER) if stage else (cfg.in_channels, FIRST)
        dim, depth, last = cfg.embed_dims[stage], cfg.depths[stage], stage == len(cfg.depths) - 1
        self.patch_embed = ConvEmbed(channels, dim, geometry, eps=cfg.norm_eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if last else None
        rates = [cfg.drop_path_rate * index / max(1, depth - 1) if last else 0.0 for index in range(depth)]
        self.blocks = nn.ModuleList(CvtBlock(cfg, stage, drop_path=rate) for rate in rates)


# --------------------------------------------------------------------------------------------------------------------
# The model


class Cvt(Backbone):
    """CvT of a CvtConfig, or of its fields by keyword: `Cvt(embed_dims=(64, 192, 384), depths=(1, 2, 10))`."""

    config: CvtConfig
    heads = ("head",)
    stems = ("stage0.patch_embed.proj",)

    def __init__(self, config: CvtConfig | None = None, **fields: Any) -> None:
        super().__init__()
        cfg = configured(CvtConfig() if config is None else config, fields)
        self.config = cfg
        count, self.embedding_dim = len(cfg.depths), cfg.embed_dims[-1]
        for stage in range(count):
            self.add_module(f"stage{stage}", CvtStage(cfg, stage))
        self.norm = nn.LayerNorm(self.embedding_dim, eps=cfg.norm_eps) if cfg.final_norm else nn.Identity()
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head: nn.Module = nn.Linear(self.embedding_dim, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.no_decay = frozenset({f"stage{count - 1}.cls_token"})
        self.class_attention_layers = cfg.depths[-1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights as in the paper's code: truncated normal of 0.02, zero biases, torch's convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, CvtStage) and module.cls_token is not None:
                nn.init.trunc_normal_(module.cls_token, std=0.02)

    @staticmethod
    def one_of_each(config: CvtConfig) -> tuple[CvtConfig, list[int]]:
        """See `BackboneBuilder.one_of_each`."""
        return dataclasses.replace(config, depths=(1,) * len(config.depths)), list(config.depths)

    def reset_head(self, num_classes: int) -> None:
        """See Backbone.reset_head."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        like = self.get_parameter("stage0.patch_embed.proj.weight")
        self.head = nn.Identity()
        if num_classes:
            head = nn.Linear(self.embedding_dim, num_classes, device=like.device, dtype=like.dtype)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self.head = head

    @property
    def parts(self) -> list[CvtStage]:
        """The stages in order."""
        return [self.get_submodule(f"stage{stage}") for stage in range(len(self.config.depths))]  # type: ignore[misc]

    @property
    def side_unit(self) -> Pair:
        """Always (1, 1): the convolutions take every size; what is left of a side beyond their last step is not seen."""
        return 1, 1

    def stages(self) -> list[Stage]:
        """Return the stem, each block (the first of a stage with the embedding before it), and the head with the last norm."""
        stages = [Stage("stem", ("stage0.patch_embed",))]
        for number, part in enumerate(self.parts):
            for index, block in enumerate(part.blocks):
                name = f"stage{number}.blocks.{index}"
                before = [] if index or not number else [f"stage{number}.patch_embed"]
                before += [f"stage{number}.cls_token"] if not index and part.cls_token is not None else []
                stages.append(Stage(name, (*before, name), block))
        return [*stages, Stage("head", ("norm", "head"))]

    def forward(self, images: Images) -> Logits:
        """Return logits (B, K), or the embedding without a head. Raises ValueError for a wrong number of channels."""
        return self.head_logits(images)[0]

    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """Return the logits in a tuple of one."""
        return (self.head(self.head_drop(self.encode(images, View(patch_size=patch_size)).pooled)),)

    def embedding(self, images: Images) -> Float[Tensor, "B E"]:
        """See Backbone.embedding."""
        return self.encode(images, View()).pooled

    def features(self, images: Images, view: View = View()) -> Features:
        """Return the class token as embedding, class token and positions of the last stage after the last norm, and the map
        of each stage.

        Raises ValueError for other channels, and for a view with masks, hidden patches, another patch or blocks.
        """
        return self.encode(images, view)

    def class_attention(self, images: Images) -> tuple[Float[Tensor, "B h N"], ...]:
        """Return the class token's attention weights in each block of the last stage, on itself and the positions.

        The weight of a key is shared among the positions that the stride joins in it.
        """
        kept: list[Tensor] = []
        self.encode(images, View(), kept)
        return tuple(kept)

    def encode(self, images: Images, view: View, kept: list[Tensor] | None = None) -> Features:
        """Run the forward pass that the calls above share: sharding wraps each of them, so none may call another."""
        self.check_channels(images)
        if view.blocks is not None:
            raise ValueError(f"CvT has a map after each of its {len(self.parts)} stages: use them, and leave View.blocks out")
        if any(option is not None for option in (view.sizes, view.visible, view.masked, view.patch_size)):
            raise ValueError("CvT's convolutions see whole maps: no sizes, visible, masked or patch_size; use a ViT")
        pyramid: list[Tensor] = []
        feature_map, read = images, None
        for part in self.parts:
            x, grid = part.patch_embed(feature_map)
            if part.cls_token is not None:
                x = torch.cat([part.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)  # (B, N, D)
            for block in part.blocks:
                read = x
                if self.checkpointing and self.training:
                    x = recomputed(block, x, grid)
                else:
                    x = block(x, grid) if part.cls_token is None else block(x, grid, kept)
            feature_map = map_and_class(x, grid)[0]  # (B, D, H, W)
            pyramid.append(feature_map)
        tokens, side = self.norm(x), FIRST.stride * LATER.stride ** (len(pyramid) - 1)
        return Features(
            pooled=tokens[:, 0], tokens=tokens, prefix=1, grid=grid, pyramid=tuple(pyramid), read=read, stride=(side, side)
        )

"""The Swin Transformer, version 1 (Liu et al. 2021): attention in shifted windows, on a pyramid of feature maps.

    images (B, C, H, W) -> PatchEmbed -> stages of blocks, with patch merging between -> norm -> mean -> head -> logits (B, K)

State-dict keys are timm's. A map that windows do not divide is padded with zeros before the shift, as in torchvision,
transformers and the paper's code for detection; timm shifts first, so its outputs differ where both happen.
"""

# B batch · C channels · H W image, or feature map · L positions = H W · D width of a stage · h heads · d = D / h
# w side of a window · n windows of an image · K classes

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.mlp import Mlp
from vitrail.models.plain_attention import plain_attention
from vitrail.models.windows import Map, WindowLayout, relative_index
from vitrail.settings import Pair, configured
from vitrail.settings.swin import SwinConfig, SwinShape

# --------------------------------------------------------------------------------------------------------------------
# The block


class WindowAttention(nn.Module):
    """Self-attention within windows: softmax(q kᵀ / √d + bias of the relative position) v (equation 4)."""

    bias_network: nn.Module | None = None
    """Network that computes the bias from offsets; None for a table."""

    def __init__(self, cfg: SwinConfig, stage: int) -> None:
        super().__init__()
        dim, self.num_heads, self.window = cfg.width(stage), cfg.num_heads[stage], cfg.window(stage)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * self.window - 1) ** 2, self.num_heads))
        self.qkv = Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(cfg.attn_drop_rate)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Map, layout: WindowLayout) -> Map:
        qkv, bias = self.qkv(layout.cut(x)), self.bias()[None]  # (B, n, w w, 3D), (1, h, w w, w w)
        if (mask := layout.mask(x.device)) is not None:
            bias = bias.masked_fill(mask[:, None], float("-inf"))  # (n, h, w w, w w)
        if self.takes_plain_attention(x):
            out = plain_attention(qkv.flatten(0, 1), self.num_heads, bias).unflatten(0, qkv.shape[:2])
            return self.proj_drop(self.proj(layout.join(out)))
        q, k, v = qkv.unflatten(3, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, n, h, w w, d)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias  # (B, n, h, w w, w w)
        out = self.attn_drop(scores.softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(layout.join(out.transpose(2, 3).flatten(3))))

    def takes_plain_attention(self, x: Map) -> bool:
        """Return True on a CPU, unless weights are dropped or the model is compiled."""
        dropped = self.training and self.attn_drop.p > 0
        return x.device.type == "cpu" and not dropped and not torch.compiler.is_compiling()

    def bias(self) -> Float[Tensor, "h _w _w"]:
        """Bias of every pair of positions in a window."""
        index = relative_index(self.window, device=self.relative_position_bias_table.device)
        return self.relative_position_bias_table[index].permute(2, 0, 1)


class SwinBlock(nn.Module):
    """Pre-norm block with attention in windows, which every other block shifts by half a window (equation 3)."""

    attention_type: Callable[[Any, int], Any] = WindowAttention

    def __init__(self, cfg: SwinShape, stage: int, *, index: int, drop_path: float) -> None:
        super().__init__()
        dim, self.shifted = cfg.width(stage), index % 2 == 1
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = self.attention_type(cfg, stage)
        self.window: int | Pair = self.attn.window
        self.drop_path1 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(dim, round(cfg.mlp_ratio * dim), drop=cfg.proj_drop_rate)
        self.drop_path2 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def forward(self, x: Map, grid: Pair) -> Map:
        layout = WindowLayout.of(grid, window=self.window, shifted=self.shifted)
        x = x + self.drop_path1(self.attn(self.norm1(x), layout))  # ẑ = (S)W-MSA(LN(z)) + z
        return x + self.drop_path2(self.mlp(self.norm2(x)))  # z = MLP(LN(ẑ)) + ẑ


class PatchMerging(nn.Module):
    """Patch merging: each 2x2 positions become one of twice the width; an odd side is padded with zeros (section 3.1)."""

    def __init__(self, cfg: SwinShape, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=cfg.norm_eps)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Map, grid: Pair) -> Float[Tensor, "B _new 2*D"]:
        return self.reduction(self.norm(neighbours(x, grid)))


def neighbours(x: Map, grid: Pair) -> Float[Tensor, "B _new 4*D"]:
    """Concatenate the channels of each 2x2 positions; an odd side is padded with zeros."""
    x = F.pad(x.unflatten(1, grid), (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))  # (B, H, W, D)
    x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 4, 2, 5)  # (B, H/2, W/2, across, down, D)
    return x.flatten(3).flatten(1, 2)


class SwinStage(nn.Module):
    """Blocks at one resolution, after the patch merging that leads to it."""

    block_type: Callable[..., SwinBlock] = SwinBlock
    merging_type: Callable[[Any, int], nn.Module] = PatchMerging

    def __init__(self, cfg: SwinShape, stage: int, drop_path: list[float]) -> None:
        super().__init__()
        self.downsample = self.merging_type(cfg, cfg.width(stage - 1)) if stage else None
        self.blocks = nn.ModuleList(
            self.block_type(cfg, stage, index=index, drop_path=rate) for index, rate in enumerate(drop_path)
        )


class SwinPatchEmbed(nn.Module):
    """Patch embedding of 4x4 pixels with a norm; sides that the patch does not divide are padded with zeros."""

    def __init__(self, cfg: SwinShape) -> None:
        super().__init__()
        self.patch = cfg.patch_size
        self.proj = nn.Conv2d(cfg.in_channels, cfg.embed_dim, kernel_size=self.patch, stride=self.patch)
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=cfg.norm_eps)

    def forward(self, images: Images) -> tuple[Map, Pair]:
        x = self.proj(F.pad(images, (0, -images.shape[3] % self.patch, 0, -images.shape[2] % self.patch)))  # (B, D, H, W)
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class Head(nn.Module):
    """Linear head under timm's name; identity for 0 classes."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Float[Tensor, "B D"]) -> Logits:
        return self.fc(x)


# --------------------------------------------------------------------------------------------------------------------
# The model


class SwinBackbone(Backbone):
    """Swin Transformer of any version: a subclass has its stages, and its settings."""

    config: SwinShape
    stage_type: Callable[..., SwinStage] = SwinStage
    undecayed: tuple[str, ...] = ()
    """Parts of the names of parameters without weight decay."""

    def __init__(self, cfg: SwinShape) -> None:
        super().__init__()
        self.config = cfg
        self.patch_embed = SwinPatchEmbed(cfg)
        total = sum(cfg.depths)
        rates = [cfg.drop_path_rate * index / max(1, total - 1) for index in range(total)]
        starts = [sum(cfg.depths[:stage]) for stage in range(len(cfg.depths))]
        self.layers = nn.ModuleList(
            self.stage_type(cfg, stage, rates[start : start + depth])
            for stage, (start, depth) in enumerate(zip(starts, cfg.depths, strict=True))
        )
        self.embedding_dim = cfg.width(len(cfg.depths) - 1)
        self.norm = nn.LayerNorm(self.embedding_dim, eps=cfg.norm_eps) if cfg.final_norm else nn.Identity()
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = Head(self.embedding_dim, cfg.num_classes)
        self.no_decay = frozenset(name for name, _ in self.named_parameters() if any(part in name for part in self.undecayed))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights as in the paper's code: truncated normal of 0.02, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()

    @staticmethod
    def one_of_each(config: Any) -> tuple[Any, list[int]]:
        """See `BackboneBuilder.one_of_each`: a shifted block has a mask beside, which is less than a percent."""
        return dataclasses.replace(config, depths=(1,) * len(config.depths)), list(config.depths)

    def reset_head(self, num_classes: int) -> None:
        """See Backbone.reset_head."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        weight = self.patch_embed.proj.weight
        self.head = Head(self.embedding_dim, num_classes).to(weight.device, weight.dtype)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)

    heads = ("head.fc",)
    stems = ("patch_embed.proj",)

    @property
    def side_unit(self) -> Pair:
        """Always (1, 1): sides that the patch or the window does not divide are padded."""
        return 1, 1

    def stem_tokens(self, img_size: Pair) -> tuple[Pair, int]:
        """See Backbone.stem_tokens."""
        patch = self.config.patch_size
        return (-(-img_size[0] // patch), -(-img_size[1] // patch)), self.config.embed_dim

    def stages(self) -> list[Stage]:
        """Return the stem, each block (the first of a stage with the merging before it), and the head with the last norm."""
        stages = [Stage("stem", ("patch_embed",))]
        for number, layer in enumerate(self.layers):
            for index, block in enumerate(layer.blocks):  # type: ignore[arg-type]
                name = f"layers.{number}.blocks.{index}"
                merging = (f"layers.{number}.downsample",) if number and not index else ()
                stages.append(Stage(name, (*merging, name), block))
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
        """Return the mean embedding, the last map's positions after the last norm, and the map after each stage.

        Raises ValueError for other channels, and for a view with masks, hidden patches, another patch or blocks.
        """
        return self.encode(images, view)

    def encode(self, images: Images, view: View) -> Features:
        """Run the forward pass that the calls above share: sharding wraps each of them, so none may call another."""
        self.check_channels(images)
        if view.blocks is not None:
            raise ValueError(f"Swin has a map after each of its {len(self.layers)} stages: use them, and leave View.blocks out")
        if view.sizes is not None or view.visible is not None or view.patch_size is not None:
            raise ValueError("Swin's windows see whole maps of its own patches: no sizes, visible or patch_size; use a ViT")
        x, grid = self.patch_embed(images)
        x = x if view.masked is None else view.masked.put(x)
        pyramid: list[Tensor] = []
        for layer in self.layers:
            if layer.downsample is not None:
                x, grid = layer.downsample(x, grid), (-(-grid[0] // 2), -(-grid[1] // 2))  # type: ignore[operator]
            for block in layer.blocks:  # type: ignore[union-attr]
                recompute = self.checkpointing and self.training
                x = checkpoint(block, x, grid, use_reentrant=False) if recompute else block(x, grid)
            pyramid.append(x.transpose(1, 2).unflatten(2, grid))  # (B, D, H, W)
            x = pyramid[-1].flatten(2).transpose(1, 2)  # (B, L, D): the same memory, behind the map for gradients
        x, side = self.norm(x), self.config.patch_size * 2 ** (len(pyramid) - 1)
        return Features(pooled=x.mean(dim=1), tokens=x, grid=grid, pyramid=tuple(pyramid), stride=(side, side))


class Swin(SwinBackbone):
    """Swin Transformer of a SwinConfig, or of its fields by keyword: `Swin(embed_dim=96, window_size=7)`."""

    config: SwinConfig
    undecayed: tuple[str, ...] = ("relative_position_bias_table",)

    def __init__(self, config: SwinConfig | None = None, **fields: Any) -> None:
        super().__init__(configured(SwinConfig() if config is None else config, fields))

"""ViTDet (Li et al. 2022), and the image encoders of SAM (Kirillov et al. 2023) and SAM 3 (Carion et al. 2025).

A plain Vision Transformer for large images: no class token, attention within windows in most blocks and over the whole image
in some, and relative positions that are a row's plus a column's (Li et al. 2022, MViTv2, section 4.1).

    images (B, C, H, W) -> projection + position -> blocks -> neck -> map (B, E, gh, gw) -> mean -> head -> logits (B, K)

State-dict keys are timm's. A map that windows do not divide is padded with zeros behind the norm, which are attended to, as in
the papers' code. Stochastic depth drops a branch of an image, as there, and not of a window, as timm does.
"""

# B batch · C channels · H W image · gh gw grid · L patches = gh gw · D width · h heads · d = D / h
# w side of a window · n windows of an image · N tokens of one attention: L, or w w in a window · E width of the embedding

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.models.attention import attend
from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View
from vitrail.models.dense import Map, block_tokens, patch_map
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.mlp import Mlp
from vitrail.models.positions import grid_of, positions_at
from vitrail.models.rotary import Rotary, Rotation, rotate
from vitrail.models.swin import Head
from vitrail.models.windows import WindowLayout
from vitrail.settings import Pair, configured, pair
from vitrail.settings.modern import ModernConfig
from vitrail.settings.vitdet import VitDetConfig

Tokens = Float[Tensor, "B L D"]
Table = Float[Tensor, "_rows d"]
"""Vector of each offset along one axis, from 1 - side to side - 1."""

# --------------------------------------------------------------------------------------------------------------------
# Relative positions


def resize_offsets(table: Table, *, side: int) -> Float[Tensor, "_ d"]:
    """Resize a table to the offsets of another side: linear, as in the papers' code. The input if the side is the same."""
    if table.shape[0] == 2 * side - 1:
        return table
    return F.interpolate(table.T[None].float(), size=2 * side - 1, mode="linear")[0].T.to(table.dtype)


def offset_vectors(table: Table, side: int) -> Float[Tensor, "{side} {side} d"]:
    """Return the vector of every pair of a query's and a key's row (or column)."""
    at = torch.arange(side, device=table.device)
    return F.embedding(at[:, None] - at[None, :] + side - 1, resize_offsets(table, side=side))


def decomposed_bias(q: Float[Tensor, "B h N d"], rows: Table, columns: Table, grid: Pair) -> Float[Tensor, "B h N N"]:
    """Return the bias q · (r + c) of every pair of patches: r and c are the vectors of their offsets in rows and columns."""
    down, across = offset_vectors(rows, grid[0]), offset_vectors(columns, grid[1])
    q = q.unflatten(2, grid)  # (B, h, gh, gw, d)
    y = torch.einsum("bhyxd,ykd->bhyxk", q, down)  # (B, h, gh, gw, gh)
    x = torch.einsum("bhyxd,xkd->bhyxk", q, across)  # (B, h, gh, gw, gw)
    return (y[..., :, None] + x[..., None, :]).flatten(4).flatten(2, 3)


# --------------------------------------------------------------------------------------------------------------------
# The block


class VitDetAttention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ / √d + q · (r + c)) v, or with rotary positions."""

    def __init__(self, cfg: VitDetConfig, sides: Pair) -> None:
        super().__init__()
        dim, self.num_heads, self.attn_drop_rate = cfg.embed_dim, cfg.num_heads, cfg.attn_drop_rate
        self.qkv = Linear(dim, 3 * dim, bias=cfg.qkv_bias)
        tables = cfg.relative == "decomposed"
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * sides[0] - 1, cfg.head_width)) if tables else None
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * sides[1] - 1, cfg.head_width)) if tables else None
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Float[Tensor, "B N D"], grid: Pair, rotation: Rotation | None = None) -> Float[Tensor, "B N D"]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d) each
        if rotation is not None:
            q, k = rotate(q, rotation, half=False), rotate(k, rotation, half=False)
        bias = None
        if self.rel_pos_h is not None and self.rel_pos_w is not None:
            bias = decomposed_bias(q, self.rel_pos_h, self.rel_pos_w, grid)
        out = attend(q, k, v, None, bias, dropout=self.attn_drop_rate if self.training else 0.0)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map, with an epsilon of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Map) -> Map:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Bottleneck(nn.Module):
    """Residual block of convolutions of 1x1, 3x3 and 1x1, at half the width between (section 3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim // 2, kernel_size=1, bias=False)
        self.norm1 = LayerNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim // 2, kernel_size=3, padding=1, bias=False)
        self.norm2 = LayerNorm2d(dim // 2)
        self.conv3 = nn.Conv2d(dim // 2, dim, kernel_size=1, bias=False)
        self.norm3 = LayerNorm2d(dim)

    def forward(self, x: Map) -> Map:
        inner = F.gelu(self.norm1(self.conv1(x)))  # (B, D/2, gh, gw)
        inner = F.gelu(self.norm2(self.conv2(inner)))
        return x + self.norm3(self.conv3(inner))


class VitDetBlock(nn.Module):
    """Pre-norm block with attention in windows or over the whole image, and ViTDet's bottleneck behind it in some."""

    def __init__(self, cfg: VitDetConfig, index: int, grid: Pair, *, drop_path: float) -> None:
        super().__init__()
        dim, self.window = cfg.embed_dim, 0 if cfg.is_global(index) else cfg.window_size
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = VitDetAttention(cfg, (self.window, self.window) if self.window else grid)
        self.drop_path1 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(dim, round(cfg.mlp_ratio * dim), drop=cfg.proj_drop_rate)
        self.drop_path2 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.residual = Bottleneck(dim) if index in cfg.residual_blocks else None

    def forward(self, x: Tokens, grid: Pair, rotation: Rotation | None = None) -> Tokens:
        x = x + self.drop_path1(self.attend(self.norm1(x), grid, rotation))  # z' = (W-)MSA(LN(z)) + z
        x = x + self.drop_path2(self.mlp(self.norm2(x)))  # z  = MLP(LN(z')) + z'
        if self.residual is None:
            return x
        return self.residual(patch_map(x, prefix=0, grid=grid)).flatten(2).mT.contiguous()  # as a block without one returns it

    def attend(self, x: Tokens, grid: Pair, rotation: Rotation | None) -> Tokens:
        """Attend in each window, or over the whole image."""
        if not self.window:
            return self.attn(x, grid, rotation)
        layout = WindowLayout.of(grid, window=self.window, shifted=False)
        windows = layout.cut(x)  # (B, n, w w, D)
        out = self.attn(windows.flatten(0, 1), (self.window, self.window), rotation)
        return layout.join(out.unflatten(0, windows.shape[:2]))


class VitDetPatchEmbed(nn.Module):
    """Patch embedding: a convolution whose stride is its kernel."""

    def __init__(self, cfg: VitDetConfig) -> None:
        super().__init__()
        patch = pair(cfg.patch_size)
        self.proj = nn.Conv2d(cfg.in_channels, cfg.embed_dim, kernel_size=patch, stride=patch, bias=not cfg.pre_norm)

    def forward(self, images: Images) -> Tokens:
        return self.proj(images).flatten(2).mT.contiguous()  # (B, L, D)


# --------------------------------------------------------------------------------------------------------------------
# The model


class VitDet(Backbone):
    """ViTDet of a VitDetConfig, or of its fields by keyword: `VitDet(img_size=512, window_size=8)`."""

    config: VitDetConfig
    heads = ("head.fc",)
    stems = ("patch_embed.proj",)

    def __init__(self, config: VitDetConfig | None = None, **fields: Any) -> None:
        super().__init__()
        cfg = configured(VitDetConfig() if config is None else config, fields)
        self.config = cfg
        self.grid = grid_of(pair(cfg.img_size), pair(cfg.patch_size))
        self.pos_grid = self.grid if cfg.pos_grid is None else pair(cfg.pos_grid)
        self.patch_embed = VitDetPatchEmbed(cfg)
        learned = cfg.pos_embed == "learn"
        self.pos_embed = nn.Parameter(torch.zeros(1, *self.pos_grid, cfg.embed_dim)) if learned else None
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        self.norm_pre = nn.LayerNorm(cfg.embed_dim, eps=cfg.norm_eps) if cfg.pre_norm else nn.Identity()
        self.rope = _rotary(cfg) if cfg.relative == "rotary" else None
        ramp = [cfg.drop_path_rate * index / max(1, cfg.depth - 1) for index in range(cfg.depth)]
        self.blocks = nn.ModuleList(VitDetBlock(cfg, index, self.grid, drop_path=rate) for index, rate in enumerate(ramp))
        self.neck = _neck(cfg)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = Head(cfg.embedding_dim, cfg.num_classes)
        self.no_decay = frozenset(name for name, _ in self.named_parameters() if "rel_pos" in name or name == "pos_embed")
        self._positions: dict[Pair, tuple[Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights as in ViTDet's code: truncated normal of 0.02, zero biases, bottlenecks without effect."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()
            if isinstance(module, VitDetAttention) and module.rel_pos_h is not None and module.rel_pos_w is not None:
                nn.init.trunc_normal_(module.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(module.rel_pos_w, std=0.02)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                for conv in (module.conv1, module.conv2, module.conv3):
                    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.norm3.weight)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    @staticmethod
    def one_of_each(config: VitDetConfig) -> tuple[VitDetConfig, list[int]]:
        """See `BackboneBuilder.one_of_each`: blocks are in windows or global, with a bottleneck or without."""
        kinds = Counter((config.is_global(block), block in config.residual_blocks) for block in range(config.depth))
        whole, bottleneck = (tuple(at for at, kind in enumerate(kinds) if kind[which]) for which in (0, 1))
        shallow = dataclasses.replace(config, depth=len(kinds), global_blocks=whole, residual_blocks=bottleneck)
        return shallow, list(kinds.values())

    def reset_head(self, num_classes: int) -> None:
        """See Backbone.reset_head."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        like = self.patch_embed.proj.weight
        self.head = Head(self.config.embedding_dim, num_classes).to(like.device, like.dtype)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)

    @property
    def side_unit(self) -> Pair:
        """Patch size (height, width)."""
        return pair(self.config.patch_size)

    def stages(self) -> list[Stage]:
        """Return the stem, each block, and the head with the neck."""
        blocks = [Stage(f"blocks.{index}", (f"blocks.{index}",), block) for index, block in enumerate(self.blocks)]
        return [Stage("stem", ("patch_embed", "pos_embed", "norm_pre")), *blocks, Stage("head", ("neck", "head"))]

    def forward(self, images: Images) -> Logits:
        """Return logits (B, K), or the embedding without a head.

        Raises ValueError for a wrong number of channels, and a side that the patch does not divide.
        """
        return self.head_logits(images)[0]

    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """Return the logits in a tuple of one."""
        return (self.head(self.head_drop(self.encode(images, View(patch_size=patch_size)).pooled)),)

    def embedding(self, images: Images) -> Float[Tensor, "B E"]:
        """See Backbone.embedding."""
        return self.encode(images, View()).pooled

    def features(self, images: Images, view: View = View()) -> Features:
        """Return the mean embedding, the patches after the neck, and these as a map.

        Maps of `view.blocks` are those behind the blocks, of width D, without the neck. Raises ValueError as `forward` does,
        for a block that does not exist, and for a view with masks, hidden patches or another patch.
        """
        return self.encode(images, view)

    def stem_tokens(self, img_size: Pair) -> tuple[Pair, int]:
        """See Backbone.stem_tokens."""
        return grid_of(img_size, pair(self.config.patch_size)), self.config.embed_dim

    def encode(self, images: Images, view: View) -> Features:
        """Run the forward pass that the calls above share: sharding wraps each of them, so none may call another."""
        patch = pair(self.config.patch_size)
        self.check_channels(images)
        if view.sizes is not None or view.visible is not None or view.patch_size is not None:
            raise ValueError(
                "ViTDet's windows see whole images in patches of its own: no sizes, visible or patch_size; use a ViT"
            )
        if view.pad:
            images = F.pad(images, (0, -images.shape[-1] % patch[1], 0, -images.shape[-2] % patch[0]))
        grid = grid_of((images.shape[-2], images.shape[-1]), patch, or_else="pad=True")
        x = self.patch_embed(images)  # (B, L, D)
        x = x if view.masked is None else view.masked.put(x)
        if self.pos_embed is not None:
            x = x + self.positions(grid).to(x.dtype)
        x = self.norm_pre(self.pos_drop(x))
        recompute, behind = self.checkpointing and self.training, block_tokens(view.blocks, self.config.depth)
        rotations: dict[int, Rotation] = {}
        for block in self.blocks:
            window: int = block.window  # type: ignore[assignment]
            if self.rope is not None and window not in rotations:
                sides = (window, window) if window else grid
                rotations[window] = self.rope(sides, prefix=0, device=x.device).of_block(0)
            inputs = x, grid, rotations.get(window)
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
            if behind is not None:
                behind.append(x)
        last = self.neck(patch_map(x, prefix=0, grid=grid))  # (B, E, gh, gw)
        tokens = last.flatten(2).mT  # (B, L, E): the same memory, behind the map for gradients
        maps = (last,) if behind is None else tuple(patch_map(kept, prefix=0, grid=grid) for kept in behind.chosen())
        return Features(pooled=tokens.mean(dim=1), tokens=tokens, grid=grid, pyramid=maps)

    def positions(self, grid: Pair) -> Float[Tensor, "1 L D"]:
        """Return the absolute positions at this grid."""
        assert self.pos_embed is not None
        if self.config.pos_resize == "tile":
            down, across = (-(-side // own) for side, own in zip(grid, self.pos_grid, strict=True))
            return self.pos_embed.tile(1, down, across, 1)[:, : grid[0], : grid[1]].flatten(1, 2)
        ways: dict[str, Any] = {"how": self.config.pos_resize, "cache": self._positions}
        return positions_at(grid, self.pos_embed.flatten(1, 2), trained=self.pos_grid, prefix=0, **ways)


def _neck(cfg: VitDetConfig) -> nn.Module:
    """Return what is between the last block and the map, under timm's names."""
    dim, channels = cfg.embed_dim, cfg.neck_channels
    if cfg.neck != "conv":
        return LayerNorm2d(dim) if cfg.neck == "norm" else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(dim, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def _rotary(cfg: VitDetConfig) -> Rotary:
    """Return SAM 3's rotations: columns, then rows; counted in a window, and over the image scaled to as many."""
    ways: dict[str, Any] = {"rope_layout": "interleaved", "rope_axes": "xy", "rope_temperature": 1e4}
    shape: dict[str, Any] = {"embed_dim": cfg.embed_dim, "num_heads": cfg.num_heads, "depth": cfg.depth}
    return Rotary(ModernConfig(**shape, **ways, rope="grid", rope_ref_grid=cfg.window_size))

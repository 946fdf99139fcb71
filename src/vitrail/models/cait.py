"""CaiT, class-attention in image Transformers (Touvron et al. 2021): many blocks among the patches, then a few for the class.

    images (B, C, H, W) -> PatchEmbed -> + position -> blocks -> class blocks -> norm -> head -> logits (B, K)

The class token enters behind the last block among the patches, and is all that the class blocks change. State-dict keys are
timm's, which are those of the paper's code.
"""

# B batch · C channels · H W image · gh gw grid · L patches = gh gw · N tokens = 1 + L
# D width · h heads · d = D / h · K classes

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View
from vitrail.models.dense import block_tokens, patch_map
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.mlp import Mlp
from vitrail.models.positions import grid_of, positions_at
from vitrail.settings import Pair, configured, pair
from vitrail.settings.cait import CaitConfig

Patches = Float[Tensor, "B L D"]
ClassToken = Float[Tensor, "B 1 D"]

# --------------------------------------------------------------------------------------------------------------------
# Among the patches


class CaitPatchEmbed(nn.Module):
    """Patch embedding: a convolution whose stride is its kernel."""

    def __init__(self, cfg: CaitConfig) -> None:
        super().__init__()
        patch = pair(cfg.patch_size)
        self.proj = nn.Conv2d(cfg.in_channels, cfg.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Images) -> Patches:
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, L, D)


class TalkingHeadsAttention(nn.Module):
    """Self-attention whose heads are mixed before and after the softmax: W softmax(L q kᵀ / √d) v (Shazeer et al. 2020)."""

    def __init__(self, cfg: CaitConfig) -> None:
        super().__init__()
        dim, self.num_heads = cfg.embed_dim, cfg.num_heads
        self.qkv = Linear(dim, 3 * dim, bias=cfg.qkv_bias)
        self.proj_l = nn.Linear(self.num_heads, self.num_heads)
        self.proj_w = nn.Linear(self.num_heads, self.num_heads)
        self.attn_drop = nn.Dropout(cfg.attn_drop_rate)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Patches) -> Patches:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, L, d) each
        scores = mix_heads(q @ k.transpose(-2, -1), self.proj_l, scale=q.shape[-1] ** -0.5)
        weights = self.attn_drop(mix_heads(scores.softmax(dim=-1), self.proj_w))  # (B, h, L, L)
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))  # (B, L, D)


def mix_heads(x: Float[Tensor, "B h L L"], linear: nn.Linear, *, scale: float = 1.0) -> Float[Tensor, "B h L L"]:
    """Apply a linear layer over the heads of `scale` x, where they lie: one product for each image.

    As a layer over the last axis it would move every weight twice, and take some 7 times as long on a CPU.
    """
    weight, bias = linear.weight.expand(x.shape[0], -1, -1), linear.bias[:, None].expand(x.shape[0], -1, -1)
    return torch.baddbmm(bias, weight, x.flatten(2), alpha=scale).unflatten(2, x.shape[2:])


class CaitBlock(nn.Module):
    """Pre-norm block among the patches, with LayerScale (equation 5)."""

    def __init__(self, cfg: CaitConfig) -> None:
        super().__init__()
        dim = cfg.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = TalkingHeadsAttention(cfg)
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(dim, round(cfg.mlp_ratio * dim), drop=cfg.proj_drop_rate)
        self.drop_path = DropPath(cfg.drop_path_rate) if cfg.drop_path_rate else nn.Identity()
        self.gamma_1 = nn.Parameter(torch.full((dim,), cfg.layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((dim,), cfg.layer_scale))

    def forward(self, x: Patches) -> Patches:
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))  # x' = x + λ·SA(η(x))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))  # x = x' + λ'·FFN(η(x'))


# --------------------------------------------------------------------------------------------------------------------
# For the class


class ClassAttention(nn.Module):
    """Attention of the class token alone, on itself and the patches: softmax(q kᵀ / √d) v with one query (equations 6 to 8)."""

    def __init__(self, cfg: CaitConfig) -> None:
        super().__init__()
        dim, self.num_heads = cfg.embed_dim, cfg.num_heads
        self.q = Linear(dim, dim, bias=cfg.qkv_bias)
        self.k = Linear(dim, dim, bias=cfg.qkv_bias)
        self.v = Linear(dim, dim, bias=cfg.qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, u: Float[Tensor, "B N D"]) -> ClassToken:
        q, k, v = self.heads(self.q(u[:, :1])), self.heads(self.k(u)), self.heads(self.v(u))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # (B, 1, D)

    def weights(self, u: Float[Tensor, "B N D"]) -> Float[Tensor, "B h N"]:
        """Return the class token's attention weights."""
        q, k = self.heads(self.q(u[:, :1])), self.heads(self.k(u))
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)[:, :, 0]

    def heads(self, x: Float[Tensor, "B n D"]) -> Float[Tensor, "B h n d"]:
        """Split the width into heads."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class CaitClassBlock(nn.Module):
    """Pre-norm block that changes the class token only, with LayerScale (section 3)."""

    def __init__(self, cfg: CaitConfig) -> None:
        super().__init__()
        dim = cfg.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = ClassAttention(cfg)
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(dim, round(cfg.mlp_ratio * dim))
        self.gamma_1 = nn.Parameter(torch.full((dim,), cfg.layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((dim,), cfg.layer_scale))

    def forward(self, x: Patches, cls: ClassToken, kept: list[Tensor] | None = None) -> ClassToken:
        """Apply the block; `kept` collects the class token's attention weights, (B, h, N)."""
        u = self.norm1(torch.cat([cls, x], dim=1))  # η([cls, x])
        if kept is not None:
            kept.append(self.attn.weights(u))
        cls = cls + self.gamma_1 * self.attn(u)  # c' = c + λ·CA(η([c, x]))
        return cls + self.gamma_2 * self.mlp(self.norm2(cls))  # c = c' + λ'·FFN(η(c'))


# --------------------------------------------------------------------------------------------------------------------
# The model


class Cait(Backbone):
    """CaiT of a CaitConfig, or of its fields by keyword: `Cait(embed_dim=192, depth=24)`."""

    config: CaitConfig
    no_decay = frozenset({"cls_token", "pos_embed"})
    heads = ("head",)
    stems = ("patch_embed.proj",)

    def __init__(self, config: CaitConfig | None = None, **fields: Any) -> None:
        super().__init__()
        cfg = configured(CaitConfig() if config is None else config, fields)
        self.config = cfg
        self.grid = grid_of(pair(cfg.img_size), pair(cfg.patch_size))
        self.patch_embed = CaitPatchEmbed(cfg)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], cfg.embed_dim))
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        self.blocks = nn.ModuleList(CaitBlock(cfg) for _ in range(cfg.depth))
        self.blocks_token_only = nn.ModuleList(CaitClassBlock(cfg) for _ in range(cfg.class_depth))
        self.class_attention_layers = cfg.class_depth
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=cfg.norm_eps)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head: nn.Module = nn.Linear(cfg.embed_dim, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self._positions: dict[Pair, tuple[Tensor, Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights as in the paper's code: truncated normal of 0.02, zero biases, LayerScale by depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()
            elif isinstance(module, CaitBlock | CaitClassBlock):
                nn.init.constant_(module.gamma_1, self.config.layer_scale)
                nn.init.constant_(module.gamma_2, self.config.layer_scale)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    @staticmethod
    def one_of_each(config: CaitConfig) -> tuple[CaitConfig, list[int]]:
        """See `BackboneBuilder.one_of_each`."""
        return dataclasses.replace(config, depth=1, class_depth=1), [config.depth, config.class_depth]

    def reset_head(self, num_classes: int) -> None:
        """See Backbone.reset_head."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        like = self.patch_embed.proj.weight
        self.head = nn.Identity()
        if num_classes:
            head = nn.Linear(self.config.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self.head = head

    @property
    def side_unit(self) -> Pair:
        """Patch size (height, width)."""
        return pair(self.config.patch_size)

    def stages(self) -> list[Stage]:
        """Return the stem, each block, each class block (the first with the class token), and the head with the last norm."""
        stages = [Stage("stem", ("patch_embed", "pos_embed"))]
        for name in ("blocks", "blocks_token_only"):
            for index, block in enumerate(self.get_submodule(name).children()):
                first = ("cls_token",) if name == "blocks_token_only" and not index else ()
                stages.append(Stage(f"{name}.{index}", (*first, f"{name}.{index}"), block))
        return [*stages, Stage("head", ("norm", "head"))]

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

    def stem_tokens(self, img_size: Pair) -> tuple[Pair, int]:
        """See Backbone.stem_tokens."""
        return grid_of(img_size, pair(self.config.patch_size)), self.config.embed_dim

    def features(self, images: Images, view: View = View()) -> Features:
        """Return the class token as embedding, class token and patches after the last norm, and these patches as a map.

        Blocks of `view.blocks` are those among the patches. Raises ValueError as `forward` does, for a block that does not
        exist, and for a view with masks, hidden patches or another patch.
        """
        return self.encode(images, view)

    def class_attention(self, images: Images) -> tuple[Float[Tensor, "B h N"], ...]:
        """Return the class token's attention weights in each class block, on itself and the patches."""
        kept: list[Tensor] = []
        self.encode(images, View(), kept)
        return tuple(kept)

    def encode(self, images: Images, view: View, kept: list[Tensor] | None = None) -> Features:
        """Run the forward pass that the calls above share: sharding wraps each of them, so none may call another."""
        cfg, patch = self.config, pair(self.config.patch_size)
        self.check_channels(images)
        if view.sizes is not None or view.visible is not None or view.patch_size is not None:
            raise ValueError("CaiT sees whole images in patches of its own: no sizes, visible or patch_size; use a ViT")
        if view.pad:
            images = F.pad(images, (0, -images.shape[-1] % patch[1], 0, -images.shape[-2] % patch[0]))
        grid = grid_of((images.shape[-2], images.shape[-1]), patch, or_else="pad=True")
        x = self.patch_embed(images)  # (B, L, D)
        x = x if view.masked is None else view.masked.put(x)
        places = positions_at(grid, self.pos_embed, trained=self.grid, prefix=0, cache=self._positions)
        x = self.pos_drop(x + places.to(x.dtype))
        recompute, behind = self.checkpointing and self.training, block_tokens(view.blocks, cfg.depth)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if behind is not None:
                behind.append(x)
        read = torch.cat([self.cls_token.repeat(x.shape[0], 1, 1).to(x.dtype), x], dim=1)  # (B, N, D)
        cls, x = read[:, :1].contiguous(), read[:, 1:]  # as the blocks return it, or a compiled one is compiled twice
        for block in self.blocks_token_only:
            cls = checkpoint(block, x, cls, use_reentrant=False) if recompute else block(x, cls, kept)
        tokens = self.norm(torch.cat([cls, x], dim=1))  # (B, N, D)
        maps = [tokens[:, 1:]] if behind is None else [self.norm(kept) for kept in behind.chosen()]
        pyramid = tuple(patch_map(one, prefix=0, grid=grid) for one in maps)
        return Features(pooled=tokens[:, 0], tokens=tokens, prefix=1, grid=grid, pyramid=pyramid, read=read)

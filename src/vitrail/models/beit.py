"""BEiT (Bao et al. 2022), BEiT v2 (Peng et al. 2022) and data2vec's image model (Baevski et al. 2022).

A plain Vision Transformer whose attention adds a bias for the offset of every pair of patches, and which has LayerScale, no
bias of keys, and the mean of the patches as its embedding.

    images (B, C, H, W) -> projection -> class token + patches -> blocks -> mean -> norm -> head -> logits (B, K)

State-dict keys are timm's. The passes are those of `ViT`; the parts are here. At another grid than the trained one, relative
positions are resized as in the paper's code and timm, at every call (models/relative_positions.py); transformers resizes them
bilinearly, and differs there.
"""

# B batch · N tokens = class token + patches · D width · h heads · d = D / h · Q queries

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.models.attention import Attended, KeyMask, Tokens, attention_weights, prefers_plain_attention
from vitrail.models.backbone import Context, Stage
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.positions import token_mask
from vitrail.models.relative_positions import Bias, Places, bias_of, bias_table, chosen_places, pair_index, resize_matrix
from vitrail.models.vit import Mlp, Sizes, ViT
from vitrail.settings import Pair
from vitrail.settings.beit import BeitConfig

_HEAD_SCALE = 1e-3
"""Scale of a new head's weights, the paper's for fine-tuning."""

# --------------------------------------------------------------------------------------------------------------------
# The block


class SharedBias(nn.Module):
    """Relative position bias that all blocks share, under timm's name."""

    def __init__(self, grid: Pair, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(bias_table(grid, num_heads))


class BeitAttention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ / √d + bias of the relative position) v."""

    def __init__(self, cfg: BeitConfig, grid: Pair) -> None:
        super().__init__()
        dim, self.num_heads, self.attn_drop_rate = cfg.embed_dim, cfg.num_heads, cfg.attn_drop_rate
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if cfg.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if cfg.qkv_bias else None
        own = cfg.relative_bias in ("block", "both")
        self.relative_position_bias_table = nn.Parameter(bias_table(grid, cfg.num_heads)) if own else None
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens, places: Places, kept: list[Attended] | None = None) -> Tokens:
        bias, (q, k, v) = self.bias(places), self.queries_keys_values(x)
        out = attend(q, k, v, places.mask, bias, dropout=self.attn_drop_rate if self.training else 0.0)
        if kept is not None:
            kept.append(Attended(x, q, k, v, out, bias))
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def bias(self, places: Places) -> Bias | None:
        """Bias of every pair of tokens, the block's own and the shared one; None if there is neither."""
        if self.relative_position_bias_table is None:
            return places.shared
        bias = bias_of(self.relative_position_bias_table, places)
        return bias if places.shared is None else bias + places.shared

    def queries_keys_values(self, x: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, h, N, d)."""
        q, k, v = self.qkv(x).chunk(3, dim=2)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        q, k, v = (each.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for each in (q, k, v))
        return q, k, v


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: KeyMask | None, bias: Bias | None, *, dropout: float
) -> Float[Tensor, "B h Q d"]:
    """Compute attention with a bias, with the fastest kernel for the device and type."""
    if prefers_plain_attention(q.device, q.dtype, k.shape[2]):
        return F.dropout(attention_weights(q, k, mask, bias), dropout) @ v
    scores: Tensor | None = None if mask is None else mask[:, None, None]
    if bias is not None:
        bias = bias.to(q.dtype).reshape(-1, *bias.shape[-3:])  # (1 or B, h, N, N)
        scores = bias if scores is None else bias.masked_fill(~scores, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=scores, dropout_p=dropout)


class BeitBlock(nn.Module):
    """Pre-norm encoder block with LayerScale."""

    def __init__(self, cfg: BeitConfig, grid: Pair, *, drop_path: float) -> None:
        super().__init__()
        dim = cfg.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = BeitAttention(cfg, grid)
        self.drop_path1 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(cfg)
        self.drop_path2 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        scale = cfg.init_values is not None
        self.gamma_1 = nn.Parameter(torch.zeros(dim)) if scale else None
        self.gamma_2 = nn.Parameter(torch.zeros(dim)) if scale else None

    def forward(self, x: Tokens, places: Places, kept: list[Attended] | None = None) -> Tokens:
        """Apply the block; `kept` collects inputs, bias and output of the attention."""
        x = x + self.drop_path1(scaled(self.attn(self.norm1(x), places, kept), self.gamma_1))  # z' = γ₁·MSA(LN(z)) + z
        return x + self.drop_path2(scaled(self.mlp(self.norm2(x)), self.gamma_2))  # z  = γ₂·MLP(LN(z')) + z'

    def queries_keys_values(self, x: Tokens, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of the block's attention, each (B, h, N, d)."""
        return self.attn.queries_keys_values(self.norm1(x))


def scaled(x: Tokens, gamma: Tensor | None) -> Tokens:
    """Multiply with LayerScale's factors, if there are any."""
    return x if gamma is None else x * gamma


# --------------------------------------------------------------------------------------------------------------------
# The model


class Beit(ViT):
    """BEiT of a BeitConfig, or of its fields by keyword: `Beit(img_size=224, relative_bias="shared")`."""

    config: BeitConfig
    stems = ("patch_embed.proj",)
    pairwise_context = True
    any_size_in_graph = False

    def __init__(self, config: BeitConfig | None = None, **fields: Any) -> None:
        super().__init__(BeitConfig() if config is None else config, **fields)
        cfg = self.config
        self.rel_pos_bias = SharedBias(self.grid, cfg.num_heads) if cfg.relative_bias in ("shared", "both") else None
        table, names = "relative_position_bias_table", (name for name, _ in self.named_parameters())
        self.no_decay = frozenset(name for name in names if name in ViT.no_decay or name.endswith(table))

    def make_block(self, index: int, drop_path: float) -> nn.Module:
        return BeitBlock(self.config, self.grid, drop_path=drop_path)

    def reset_parameters(self, only: Collection[str] | None = None) -> None:
        """Initialise all layers, or those with tensors in `only`, as in the paper's code: deeper blocks add less at first."""
        only = set(self.state_dict()) if only is None else only
        super().reset_parameters(only)
        for name, parameter in self.named_parameters():
            if name not in only:
                continue
            if name.endswith(("gamma_1", "gamma_2")):
                nn.init.constant_(parameter, self.config.init_values or 0.0)
            elif name.endswith(("relative_position_bias_table", "q_bias", "v_bias")):
                nn.init.zeros_(parameter)
            elif name.endswith(("attn.proj.weight", "mlp.fc2.weight")) and name.startswith("blocks."):
                nn.init.trunc_normal_(parameter, std=0.02 / math.sqrt(2 * (1 + int(name.split(".")[1]))))
            elif name == "head.weight":
                _small(parameter)

    def reset_head(self, num_classes: int) -> None:
        """See Backbone.reset_head."""
        super().reset_head(num_classes)
        if isinstance(self.head, nn.Linear):
            _small(self.head.weight)

    def stages(self) -> list[Stage]:
        """Return the stages of ViT; the shared bias belongs to the stem."""
        stem, *others = super().stages()
        return [Stage(stem.name, (*stem.paths, "rel_pos_bias")), *others]

    # ---- positions

    def context(self, grid: Pair, *, patch: Pair, sizes: Sizes, device: torch.device) -> Places:
        """Return the mask, and what relative position bias needs to know of the grid."""
        mask = None if sizes is None else token_mask(sizes, grid=grid, patch=patch, prefix=self.prefix_tokens)
        if self.config.relative_bias == "none":
            return Places(mask, None, None, None)
        resize = None
        if grid != self.grid:
            down, across = (resize_matrix(*sides).to(device) for sides in zip(self.grid, grid, strict=True))
            resize = down, across
        places = Places(mask, pair_index(grid, device=device), resize, None)
        if self.rel_pos_bias is None:
            return places
        return places._replace(shared=bias_of(self.rel_pos_bias.relative_position_bias_table, places))

    def valid_tokens(self, context: Context) -> Bool[Tensor, "B N"] | None:
        """See Backbone.valid_tokens."""
        return None if context is None else context.mask

    def score_bias(self, layer: int, context: Context) -> Bias | None:
        """See Backbone.score_bias."""
        bias: Bias | None = self.blocks[layer].attn.bias(context)  # type: ignore[operator, union-attr]
        return bias

    def keep_patches(
        self, x: Tokens, context: Context, patches: Int64[Tensor, "B _L"]
    ) -> tuple[Float[Tensor, "B _ D"], Places]:
        """Return the prefix tokens and the given patches, in that order, and their places."""
        x, mask = super().keep_patches(x, context.mask, patches)
        prefix = torch.arange(self.prefix_tokens, device=x.device).expand(x.shape[0], -1)
        chosen = torch.cat([prefix, patches + self.prefix_tokens], dim=1)
        return x, chosen_places(context._replace(mask=mask), chosen)


def _small(weight: Tensor) -> None:
    nn.init.trunc_normal_(weight, std=0.02 * _HEAD_SCALE, a=-2 * _HEAD_SCALE, b=2 * _HEAD_SCALE)

"""The plain Vision Transformer.

An Image is Worth 16x16 Words (Dosovitskiy et al. 2021), with the parts that came after it: LayerScale, stochastic depth,
registers, qk-norm, SwiGLU, attention pooling, a convolutional stem, and images of any size, patch and number of channels.

    images (B, C, H, W) -> PatchEmbed -> + position -> blocks -> norm -> pool -> head -> logits (B, K)

State-dict keys are timm's. Read from the bottom up, or from `ViT.forward` down.
"""

# B batch · C channels · H W image · P patch · gh gw grid = H/P, W/P · L patches = gh gw · T prefix tokens · N tokens = T + L
# D width · M hidden width of the MLP · h heads · d = D / h · K classes · Q queries

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.models.activations import GELUS
from vitrail.models.attention import Attended, KeyMask, Mask, Tokens, attend, attention_weights
from vitrail.models.backbone import Backbone, Context, Features, HalvedBlock, Images, Logits, MaskedPatches, Stage, View
from vitrail.models.conv_stem import conv_stem
from vitrail.models.dense import begun_grid, block_tokens, tokens_and_maps
from vitrail.models.drop_path import DropPath as DropPath
from vitrail.models.linear import Linear
from vitrail.models.plain_attention import plain_attention, plain_is_faster
from vitrail.models.positions import grid_of as grid_of
from vitrail.models.positions import positions_at, resize_patch, sincos_2d, token_mask
from vitrail.models.positions import require_resizable as require_resizable
from vitrail.settings import Pair, ViTConfig, configured, pair

Sizes = Int64[Tensor, "B 2"] | None  # height and width of each image on its canvas
Patch = int | Pair | None
Visible = Int64[Tensor, "B _L"] | None  # patches that are kept, in this order

# --------------------------------------------------------------------------------------------------------------------
# Images to tokens


class PatchEmbed(nn.Module):
    """Patch embedding: a convolution whose stride is its kernel (section 3.1).

    With stem "conv", 3x3 convolutions of stride 2 come first and the projection cuts what is left of the patch
    (Xiao et al. 2021): the same grid, easier to train on little data.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        patch, channels = pair(cfg.patch_size), cfg.in_channels
        self.stem: nn.Module = nn.Identity()
        if cfg.stem == "conv":
            self.stem, channels, patch = conv_stem(cfg)
        self.proj = nn.Conv2d(channels, cfg.embed_dim, kernel_size=patch, stride=patch, bias=not cfg.pre_norm)
        pixels = channels * patch[0] * patch[1]
        self.pixel_norm = nn.LayerNorm(pixels, eps=cfg.norm_eps) if cfg.patch_norm else None
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=cfg.norm_eps) if cfg.patch_norm else None

    def forward(self, images: Images, patch: Pair | None = None) -> Float[Tensor, "B L D"]:
        """Project the patches; with `patch`, resize filters and stride to it for this call."""
        if patch is not None:
            x = F.conv2d(images, resize_patch(self.proj.weight, to=patch), self.proj.bias, stride=patch)  # (B, D, gh, gw)
        elif self.pixel_norm is not None and self.norm is not None:  # each patch is normalised, which no convolution does
            patches = F.unfold(images, self.proj.kernel_size, stride=self.proj.stride).transpose(1, 2)  # (B, L, C P P)
            return self.norm(F.linear(self.pixel_norm(patches), self.proj.weight.flatten(1), self.proj.bias))  # (B, L, D)
        else:
            x = self.proj(self.stem(images))  # (B, D, gh, gw)
        return x.flatten(2).transpose(1, 2)  # (B, L, D)


# --------------------------------------------------------------------------------------------------------------------
# The block and its parts


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ / √d) v, with q, k and v from one projection (appendix A)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        dim, head_dim = cfg.embed_dim, cfg.head_dim or cfg.embed_dim // cfg.num_heads
        inner = cfg.num_heads * head_dim  # D, unless head_dim says otherwise
        self.num_heads = cfg.num_heads
        self.qkv = Linear(dim, 3 * inner, bias=cfg.qkv_bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.attn_drop_rate = cfg.attn_drop_rate
        self.proj = Linear(inner, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens, mask: Mask | None = None, kept: list[Attended] | None = None) -> Tokens:
        if self.takes_plain_attention(x, mask, kept):
            return self.proj_drop(self.proj(plain_attention(self.qkv(x), self.num_heads)))  # (B, N, D)
        tokens, (q, k, v) = x, self.queries_keys_values(x)
        x = attend(q, k, v, mask, dropout=self.attn_drop_rate if self.training else 0.0)  # (B, h, N, d)
        if kept is not None:
            kept.append(Attended(tokens, q, k, v, x))
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # (B, N, D)

    def takes_plain_attention(self, x: Tokens, mask: Mask | None, kept: list[Attended] | None) -> bool:
        """Return True where q, k and v go as they come from their projection into products that beat the fused kernel.

        With gradients in evaluation mode they do not: what explains a model may ask for gradients of gradients.
        """
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and not self.training):
            return False
        dropped = self.training and self.attn_drop_rate > 0
        unchanged = isinstance(self.q_norm, nn.Identity) and not dropped and mask is None and kept is None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.qkv.weight.dtype
        return unchanged and plain_is_faster(x.device, dtype, x.shape[1])

    def queries_keys_values(self, x: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, h, N, d)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v


class Mlp(nn.Module):
    """Two layers around GELU."""

    def __init__(self, cfg: ViTConfig, *, branches: int = 1) -> None:
        super().__init__()
        hidden = round(cfg.embed_dim * cfg.mlp_ratio)
        self.gelu = GELUS.get(cfg.mlp, F.gelu)  # attention pooling has this MLP beside blocks with SwiGLU
        self.fc1 = Linear(cfg.embed_dim, branches * hidden)
        self.fc2 = Linear(hidden, cfg.embed_dim)
        self.drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens) -> Tokens:
        return self.drop(self.fc2(self.gelu(self.fc1(x))))


class SwiGLU(Mlp):
    """fc2(silu(a) · b), with a and b from one projection (Shazeer 2020)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__(cfg, branches=2)

    def forward(self, x: Tokens) -> Tokens:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(F.silu(a) * b))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tokens) -> Tokens:
        return x * self.gamma


class Block(nn.Module):
    """One pre-norm encoder block (equations 2 and 3)."""

    def __init__(self, cfg: ViTConfig, *, drop_path: float) -> None:
        super().__init__()
        dim = cfg.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = Attention(cfg)
        self.ls1 = nn.Identity() if cfg.init_values is None else LayerScale(dim, cfg.init_values)
        self.drop_path1 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = SwiGLU(cfg) if cfg.mlp == "swiglu" else Mlp(cfg)
        self.ls2 = nn.Identity() if cfg.init_values is None else LayerScale(dim, cfg.init_values)
        self.drop_path2 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def forward(self, x: Tokens, mask: Mask | None = None, kept: list[Attended] | None = None) -> Tokens:
        """Apply the block; `kept` collects inputs and output of the attention."""
        return self.add_mlp(self.add_attention(x, mask, kept))

    def add_attention(self, x: Tokens, mask: Mask | None = None, kept: list[Attended] | None = None) -> Tokens:
        """Apply the first half of the block."""
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), mask, kept)))  # z' = γ₁·MSA(LN(z)) + z

    def add_mlp(self, x: Tokens) -> Tokens:
        """Apply the second half of the block."""
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))  # z  = γ₂·MLP(LN(z')) + z'

    def queries_keys_values(self, x: Tokens, mask: KeyMask | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of the block's attention, each (B, h, N, d)."""
        return self.attn.queries_keys_values(self.norm1(x))


# --------------------------------------------------------------------------------------------------------------------
# Tokens to logits


class AttentionPool(nn.Module):
    """Attention pooling with one learned query, then an MLP (MAP head: Zhai et al. 2022, section 2.2)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        dim = cfg.embed_dim
        self.num_heads = cfg.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(cfg)

    def forward(self, x: Tokens, mask: Mask | None = None, kept: list[Attended] | None = None) -> Float[Tensor, "B D"]:
        q = self.q(self.latent).expand(x.shape[0], -1, -1).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, h, 1, d)
        k, v = self.kv(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d) each
        out = attend(q, k, v, mask, dropout=0.0)
        if kept is not None:
            kept.append(Attended(x, q, k, v, out))
        x = self.proj(out.transpose(1, 2).flatten(2))  # (B, 1, D)
        return (x + self.mlp(self.norm(x)))[:, 0]


class PreLogits(nn.Module):
    """The hidden layer of the paper's pre-training head (section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return torch.tanh(self.fc(x))


# --------------------------------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of one forward pass."""

    logits: Float[Tensor, "B K"]
    embedding: Float[Tensor, "B E"]
    """Input of the head: width D, or 2 D with pool "cls+avg"."""
    tokens: Tokens
    """Tokens after the last norm: prefix tokens (class, distillation, registers), then patches row by row."""
    features: tuple[Tokens, ...]
    """Tokens after each block, before the last norm."""
    dist_logits: Float[Tensor, "B K"] | None = None
    """Logits of the distillation head, if there is one; then `logits` are those of the class token."""


class ViT(Backbone):
    """Vision Transformer of a ViTConfig, or of its fields: `ViT(img_size=28, patch_size=4, in_channels=1)`."""

    config: ViTConfig
    no_decay = frozenset({"cls_token", "dist_token", "reg_token", "pos_embed", "attn_pool.latent"})
    global_attention = True
    any_size_in_graph = True
    pos_embed: Tensor | None

    def __init__(self, config: ViTConfig | None = None, **fields: Any) -> None:
        super().__init__()
        cfg = configured(config or ViTConfig(), fields)
        self.config = cfg
        self.grid = grid_of(pair(cfg.img_size), pair(cfg.patch_size))
        self.heads = ("head", "head_dist") if cfg.dist_token else ("head",)

        dim = cfg.embed_dim
        self.patch_embed = self.make_patch_embed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.dist_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, cfg.reg_tokens, dim)) if cfg.reg_tokens else None
        rows = self.placed_tokens + self.grid[0] * self.grid[1]
        if cfg.pos_embed == "learn":
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, dim))
        else:
            self.register_buffer("pos_embed", torch.zeros(1, rows, dim) if cfg.pos_embed == "sincos2d" else None)
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        ramp = [cfg.drop_path_rate * i / max(1, cfg.depth - 1) for i in range(cfg.depth)]
        self.norm_pre = self.make_norm() if cfg.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(self.make_block(index, rate) for index, rate in enumerate(ramp))
        self.norm = self.make_norm() if cfg.final_norm and not cfg.fc_norm else nn.Identity()
        self.attn_pool = AttentionPool(cfg) if cfg.pool == "map" else None
        self.fc_norm = self.make_norm() if cfg.fc_norm else nn.Identity()
        self.pre_logits = PreLogits(self.embedding_dim) if cfg.head == "mlp" else nn.Identity()
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self._positions: dict[Pair, tuple[Tensor, Tensor]] = {}
        self.reset_head(cfg.num_classes)
        self.reset_parameters()

    def make_patch_embed(self) -> PatchEmbed:
        """Build the patch embedding. A family with other parts overrides this and the next two."""
        return PatchEmbed(self.config)

    def make_norm(self) -> nn.Module:
        """Build a norm of tokens."""
        return nn.LayerNorm(self.config.embed_dim, eps=self.config.norm_eps)

    def make_block(self, index: int, drop_path: float) -> nn.Module:
        """Build a block, which has `forward(x, context, kept)` and `queries_keys_values(x, context)`."""
        return Block(self.config, drop_path=drop_path)

    def reset_parameters(self, only: Collection[str] | None = None) -> None:
        """Initialise all layers, or those with tensors in `only`: truncated normal of 0.02, convolutions by fan-in."""
        only = set(self.state_dict()) if only is None else only
        for path, module in self.named_modules():
            if not any(f"{path}.{name}" in only for name, _ in module.named_parameters(recurse=False)):
                continue
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = 0.02 if isinstance(module, nn.Linear) else module.weight[0].numel() ** -0.5
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.init)
            elif isinstance(module, AttentionPool):
                nn.init.trunc_normal_(module.latent, std=0.02)
        for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            value = getattr(self, name)
            if isinstance(value, nn.Parameter) and name in only:
                nn.init.trunc_normal_(value, std=0.02)
        if self.config.pos_embed == "sincos2d" and "pos_embed" in only:
            self.get_buffer("pos_embed")[:, -self.grid[0] * self.grid[1] :] = sincos_2d(self.grid, self.config.embed_dim)

    @staticmethod
    def one_of_each(config: Any) -> tuple[Any, list[int]]:
        """See `BackboneBuilder.one_of_each`."""
        kinds = min(config.depth, 1)
        return dataclasses.replace(config, depth=kinds), [config.depth] * kinds

    def reset_head(self, num_classes: int) -> None:
        """Replace the head with a new one of `num_classes` outputs; 0 removes it, and the logits are the embedding."""
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes} must not be negative; 0 leaves the head out")
        weight = next(self.patch_embed.parameters())

        def linear() -> nn.Module:
            if not num_classes:
                return nn.Identity()
            head = nn.Linear(self.embedding_dim, num_classes, device=weight.device, dtype=weight.dtype)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            return head

        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        self.head: nn.Module = linear()
        self.head_dist: nn.Module | None = linear() if self.config.dist_token else None

    @property
    def prefix_tokens(self) -> int:
        """Number of prefix tokens T: class, distillation and register tokens, which come before the patches."""
        return self.config.class_token + self.config.dist_token + self.config.reg_tokens

    @property
    def placed_tokens(self) -> int:
        """Number of prefix tokens with a row in the position embedding; registers have none."""
        return 0 if self.config.no_embed_class else self.config.class_token + self.config.dist_token

    @property
    def embedding_dim(self) -> int:
        """Width E of the head's input."""
        return self.config.embed_dim * (2 if self.config.pool == "cls+avg" else 1)

    @property
    def side_unit(self) -> Pair:
        """Patch size (height, width); with `pad`, every image size is valid."""
        return pair(self.config.patch_size)

    def check_patch(self, patch: Pair) -> None:
        """See Backbone.check_patch."""
        if patch != pair(self.config.patch_size):
            require_resizable(self.config, patch)

    def stem_tokens(self, img_size: Pair) -> tuple[Pair, int]:
        """See Backbone.stem_tokens."""
        if self.config.stem == "conv":
            raise ValueError('stem "conv" looks beyond each patch, so masked ones would show; use stem "patch"')
        return grid_of(img_size, pair(self.config.patch_size)), self.config.embed_dim

    def stages(self) -> list[Stage]:
        """Return the stem, each block, and the head with the last norm and the pooling."""
        stem = ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre")
        head = ("norm", "fc_norm", "attn_pool", "pre_logits", "head", "head_dist")
        blocks = [Stage(f"blocks.{index}", (f"blocks.{index}",), block) for index, block in enumerate(self.blocks)]
        return [Stage("stem", stem), *blocks, Stage("head", head)]

    def mergeable_blocks(self) -> list[HalvedBlock]:
        """See Backbone.mergeable_blocks."""
        blocks: list[HalvedBlock] = [block for block in self.blocks if isinstance(block, HalvedBlock)]
        return blocks if len(blocks) == len(self.blocks) else super().mergeable_blocks()

    # ---- calls: each is a part of `outputs`

    def forward(self, images: Images, *, pad: bool = False, sizes: Sizes = None, patch_size: Patch = None) -> Logits:
        """Return logits (B, K), or the embedding without a head.

        With `pad`, an image whose side the patch does not divide is padded with zeros on the right and below. With
        `sizes` (height and width in pixels), each image takes the upper left corner of its canvas: patches that hold
        none of its pixels are masked. With `patch_size`, this call cuts other patches than the model's own: projection and
        positions are resized to them, and learn through it (FlexiViT: Beyer et al. 2023). Raises ValueError for other
        channels, a side that the patch does not divide, and another patch where the stem can't be resized.
        """
        return self.read(*self.encode(images, View(pad=pad, sizes=sizes, patch_size=patch_size)))

    def forward_features(self, images: Images, *, pad: bool = False, sizes: Sizes = None, patch_size: Patch = None) -> Tokens:
        """Return tokens (B, N, D) after the last norm: prefix tokens, then patches row by row."""
        return self.norm(self.encode(images, View(pad=pad, sizes=sizes, patch_size=patch_size))[0])

    def features(self, images: Images, view: View = View()) -> Features:
        """Return pooled embedding, tokens and maps. Raises ValueError as `forward`, `embed` and `tokens_and_maps` do."""
        x, mask = self.encode(images, view, blocks := block_tokens(view.blocks, self.config.depth))
        place: Any = {"prefix": self.prefix_tokens, "grid": begun_grid(images, pair(view.patch_size or self.config.patch_size))}
        x, pyramid = tokens_and_maps(self.norm(x), blocks, norm=self.norm, whole=view.visible is None, **place)
        return Features(pooled=self.pool(x, mask), tokens=x, pyramid=pyramid, **place)

    def head_logits(self, images: Images, *, patch_size: Patch = None) -> tuple[Logits, ...]:
        """Return the class head's logits and, with a distillation token, those of its head."""
        return self.apply_heads(*self.pooled_and_tokens(images, View(patch_size=patch_size)))

    def embedding(self, images: Images) -> Float[Tensor, "B _"]:
        """Return the pooled embedding; with a distillation token, concatenated with that token."""
        pooled, tokens = self.pooled_and_tokens(images, View())
        return pooled if self.head_dist is None else torch.cat([pooled, tokens[:, 1]], dim=1)

    def outputs(self, images: Images, *, pad: bool = False, sizes: Sizes = None, patch_size: Patch = None) -> Outputs:
        """Return logits, embedding, tokens and the features after every block, in one pass."""
        features: list[Tensor] = []
        embedding, x = self.pooled_and_tokens(images, View(pad=pad, sizes=sizes, patch_size=patch_size), features)
        logits = self.apply_heads(embedding, x)
        return Outputs(logits[0], embedding, x, tuple(features), logits[1] if self.head_dist is not None else None)

    def attention_maps(
        self,
        images: Images,
        *,
        layers: Sequence[int] = (-1,),
        queries: Literal["cls", "all"] | Sequence[int] = "cls",
        pad: bool = False,
        sizes: Sizes = None,
        patch_size: Patch = None,
    ) -> dict[int, Float[Tensor, "B h Q N"]]:
        """Return attention weights by layer, of the given queries only: O(N) memory per query; the pass itself stays fused.

        `queries` are "cls", "all", or positions among the N tokens (`prefix_tokens` and up are patches). Negative layers
        count from the end; the keys of the result are those of `layers`. Raises ValueError for a layer or a query that
        does not exist.
        """
        depth = self.config.depth
        if wrong := [layer for layer in layers if not -depth <= layer < depth]:
            raise ValueError(f"layer {wrong[0]} does not exist; this model has layers 0 to {depth - 1} (or -{depth} to -1)")
        indexes = {layer % depth for layer in layers}
        x, context = self.embed(images, pad=pad, sizes=sizes, patch_size=patch_size)
        rows = self.rows(queries, x.shape[1]).to(x.device)
        maps: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            if index in indexes:
                q, k, _ = block.queries_keys_values(x, context)  # type: ignore[operator]
                bias = self.score_bias(index, context)
                bias = None if bias is None else bias[..., rows, :]
                maps[index] = attention_weights(q[:, :, rows], k, self.valid_tokens(context), bias)
            if len(maps) == len(indexes):
                break
            x = block(x, context)
        return {layer: maps[layer % depth] for layer in layers}

    # ---- steps

    def encode(self, images: Images, view: View, features: list[Tensor] | None = None) -> tuple[Tokens, Context]:
        """Return tokens after the last block, before the norm, and their context; `features` collects those of each block."""
        shape: Any = {"pad": view.pad, "sizes": view.sizes, "patch_size": view.patch_size}
        x, context = self.embed(images, **shape, visible=view.visible, masked=view.masked)
        for block in self.blocks:
            recompute = self.checkpointing and self.training
            x = checkpoint(block, x, context, use_reentrant=False) if recompute else block(x, context)
            if features is not None:
                features.append(x)
        return x, context

    def pooled_and_tokens(
        self, images: Images, view: View, features: list[Tensor] | None = None
    ) -> tuple[Float[Tensor, "B E"], Tokens]:
        """Return the pooled embedding, and the tokens after the last norm. `features` as for `encode`."""
        x, context = self.encode(images, view, features)
        x = self.norm(x)
        return self.pool(x, context), x

    def embed(
        self,
        images: Images,
        *,
        pad: bool,
        sizes: Sizes,
        patch_size: Patch = None,
        visible: Visible = None,
        masked: MaskedPatches | None = None,
    ) -> tuple[Tokens, Context]:
        """Return prefix tokens and patches with their positions, and the `context` of the blocks.

        With `visible`, only those patches, in order; ValueError with patch_drop_rate in training and with stem "conv".
        """
        cfg, trained_patch = self.config, pair(self.config.patch_size)
        patch = trained_patch if patch_size is None else pair(patch_size)
        self.check_patch(patch)
        self.check_channels(images)
        if pad:
            images = F.pad(images, (0, -images.shape[-1] % patch[1], 0, -images.shape[-2] % patch[0]))
        grid = grid_of((images.shape[-2], images.shape[-1]), patch, or_else="pad=True")
        x = self.patch_embed(images) if patch == trained_patch else self.patch_embed(images, patch)  # (B, L, D)
        x = x if masked is None else masked.put(x)

        kinds = (self.cls_token, self.dist_token, self.reg_token)
        tokens = [kind.expand(x.shape[0], -1, -1).to(x.dtype) for kind in kinds if kind is not None]
        place = self.placed_tokens  # the first ones have a position
        if place:
            x = torch.cat([*tokens[:place], x], dim=1)
        if self.pos_embed is not None:
            x = x + self.positions(grid).to(x.dtype)
        if tokens[place:]:
            x = torch.cat([x[:, :place], *tokens[place:], x[:, place:]], dim=1)
        context = self.context(grid, patch=patch, sizes=sizes, device=x.device)
        if visible is not None:
            if cfg.stem == "conv":
                raise ValueError('stem "conv" looks beyond each patch, so hidden ones would show; use stem "patch"')
            if self.training and cfg.patch_drop_rate:
                raise ValueError(f"patch_drop_rate {cfg.patch_drop_rate} hides patches, and so does `visible`; use rate 0")
            x, context = self.keep_patches(x, context, visible)  # (B, N, D), of fewer patches
        x = self.norm_pre(self.pos_drop(x))
        return self.drop_patches(x, context) if self.training and cfg.patch_drop_rate else (x, context)  # (B, N, D)

    def context(self, grid: Pair, *, patch: Pair, sizes: Sizes, device: torch.device) -> Context:
        """Return the second input of the blocks: the mask of valid tokens (None: all)."""
        return None if sizes is None else token_mask(sizes, grid=grid, patch=patch, prefix=self.prefix_tokens)

    def positions(self, grid: Pair) -> Float[Tensor, "1 _ D"]:
        """Return the position embedding at this grid, cached while gradients are off."""
        assert self.pos_embed is not None
        return positions_at(grid, self.pos_embed, trained=self.grid, prefix=self.placed_tokens, cache=self._positions)

    def drop_patches(self, x: Tokens, context: Context) -> tuple[Float[Tensor, "B _ D"], Context]:
        """Drop a share of the patches, drawn for each image (PatchDropout: Liu et al. 2023)."""
        prefix, patches = self.prefix_tokens, x.shape[1] - self.prefix_tokens
        kept = max(1, round(patches * (1 - self.config.patch_drop_rate)))
        order = torch.rand(x.shape[0], patches, device=x.device)
        if (mask := self.valid_tokens(context)) is not None:
            order = order + mask[:, prefix:]  # patches that are not there go first, so that something of every image is left
        return self.keep_patches(x, context, order.topk(kept, dim=1).indices.sort(dim=1).values)

    def keep_patches(
        self, x: Tokens, context: Context, patches: Int64[Tensor, "B _L"]
    ) -> tuple[Float[Tensor, "B _ D"], Context]:
        """Return the prefix tokens and the given patches, in that order, and their context."""
        prefix = torch.arange(self.prefix_tokens, device=x.device).expand(x.shape[0], -1)
        chosen = torch.cat([prefix, patches + self.prefix_tokens], dim=1)
        x = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
        return x, None if context is None else context.gather(1, chosen)

    def read(self, x: Tokens, context: Context = None, kept: list[Attended] | None = None) -> Float[Tensor, "B K"]:
        """Compute logits from the tokens after the last block. `kept` collects inputs and output of attention pooling."""
        x = self.norm(x)
        logits = self.apply_heads(self.pool(x, context, kept), x)
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2

    def apply_heads(self, embedding: Float[Tensor, "B E"], tokens: Tokens) -> tuple[Logits, ...]:
        """Return the logits of each head."""
        logits = self.head(self.head_drop(embedding))
        return (logits,) if self.head_dist is None else (logits, self.head_dist(self.head_drop(tokens[:, 1])))

    def pool(self, x: Tokens, context: Context = None, kept: list[Attended] | None = None) -> Float[Tensor, "B E"]:
        """Pool the tokens: the class token, the mean of the patch tokens, both, or attention pooling."""
        cfg, mask = self.config, self.valid_tokens(context)
        start = 0 if cfg.pool_include_prefix else self.prefix_tokens
        tokens, valid = x[:, start:], None if mask is None else mask[:, start:]
        if self.attn_pool is not None:
            x = self.attn_pool(tokens, valid, kept)
        elif cfg.pool == "cls":
            x = x[:, 0]
        else:
            mean = tokens.mean(1) if valid is None else (tokens * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
            x = mean if cfg.pool == "avg" else torch.cat([x[:, 0], mean], dim=1)
        return self.pre_logits(self.fc_norm(x))

    def rows(self, queries: Literal["cls", "all"] | Sequence[int], tokens: int) -> Int64[Tensor, " Q"]:
        """Return the positions of the queries among the tokens."""
        if queries == "cls" and not self.config.class_token:
            raise ValueError('queries "cls": this model has no class token; ask for patches by position, or "all"')
        if isinstance(queries, str) and queries not in ("cls", "all"):
            raise ValueError(f'queries "{queries}" is neither "cls" nor "all" nor positions')
        chosen = range(tokens) if queries == "all" else [0] if queries == "cls" else queries
        if wrong := [query for query in chosen if not 0 <= query < tokens]:
            raise ValueError(f"query {wrong[0]} does not exist; this image has tokens 0 to {tokens - 1}")
        return torch.tensor(list(chosen), dtype=torch.long)

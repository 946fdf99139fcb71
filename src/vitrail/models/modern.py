"""The modern Vision Transformer: a plain one with rotary positions, gated MLPs, RMSNorm, and norms in other places.

DINOv3 (Siméoni et al. 2025), EVA (Fang et al. 2023) and EVA-02 (Fang et al. 2024), Perception Encoder (Bolya et al. 2025),
AIMv2 (Fini et al. 2025), RoPE-ViT (Heo et al. 2024), Pixtral, InternViT, Sapiens2: one model, whose config says which parts.

    images (B, C, H, W) -> PatchEmbed -> + position -> blocks, turned by position -> norm -> pool -> head -> logits (B, K)

State-dict keys are timm's, those of its Eva where its classes differ. The passes are those of `ViT`; its parts are here.
"""

# B batch · C channels · H W image · P patch · N tokens (prefix + patches) · D width · M hidden width of the MLP
# h heads · d width of a head · E width of the embedding

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.models.activations import GELUS
from vitrail.models.backbone import Context, Images, Stage
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.norms import make_norm
from vitrail.models.positions import positions_at, sincos_2d, token_mask
from vitrail.models.rotary import Rotary, RotaryContext, Rotation, rotate
from vitrail.models.vit import Attended, AttentionPool, KeyMask, PatchEmbed, Sizes, Tokens, ViT, attend
from vitrail.settings import Pair, pair
from vitrail.settings.modern import ModernConfig

# --------------------------------------------------------------------------------------------------------------------
# The block and its parts


class NormedPatchEmbed(PatchEmbed):
    """Patch embedding with a norm of the tokens."""

    def __init__(self, cfg: ModernConfig) -> None:
        super().__init__(cfg)
        self.norm = make_norm(cfg, cfg.embed_dim)  # type: ignore[assignment]

    def forward(self, images: Images, patch: Pair | None = None) -> Float[Tensor, "B L D"]:
        return self.norm(super().forward(images, patch))  # type: ignore[misc]


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are turned by position: softmax(R q (R k)ᵀ / √d) v."""

    def __init__(self, cfg: ModernConfig, index: int) -> None:
        super().__init__()
        dim, width = cfg.embed_dim, cfg.head_width
        inner = cfg.num_heads * width  # D, unless head_dim says otherwise
        self.index, self.num_heads, self.kv_heads = index, cfg.num_heads, cfg.kv_heads_of(index)
        self.turns_halves, self.attn_drop_rate = cfg.rope_layout == "half", cfg.attn_drop_rate
        self.fused, self.joined_bias = cfg.qkv == "fused", cfg.qkv_bias and not cfg.key_bias
        if self.fused:
            self.qkv = Linear(dim, 3 * inner, bias=cfg.qkv_bias and cfg.key_bias)
            if self.joined_bias:
                self.q_bias, self.v_bias = nn.Parameter(torch.zeros(inner)), nn.Parameter(torch.zeros(inner))
        else:
            self.q_proj = Linear(dim, inner, bias=cfg.qkv_bias)
            self.k_proj = Linear(dim, self.kv_heads * width, bias=cfg.qkv_bias and cfg.key_bias)
            self.v_proj = Linear(dim, self.kv_heads * width, bias=cfg.qkv_bias)
        self.norms_all = cfg.qk_norm_width == "all"
        q_width, k_width = (inner, self.kv_heads * width) if self.norms_all else (width, width)
        self.q_norm = make_norm(cfg, q_width) if cfg.qk_norm else nn.Identity()
        self.k_norm = make_norm(cfg, k_width) if cfg.qk_norm else nn.Identity()
        self.norm = make_norm(cfg, inner) if cfg.scale_attn_inner else nn.Identity()
        self.proj = Linear(inner, dim, bias=cfg.proj_bias)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens, context: RotaryContext, kept: list[Attended] | None = None) -> Tokens:
        q, k, v = self.queries_keys_values(x, context)
        out = attend(q, k, v, context.mask, dropout=self.attn_drop_rate if self.training else 0.0)  # (B, h, N, d)
        if kept is not None:
            kept.append(Attended(x, q, k, v, out))
        return self.proj_drop(self.proj(self.norm(out.transpose(1, 2).flatten(2))))

    def queries_keys_values(self, x: Tokens, context: RotaryContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return turned queries and keys, and values, each (B, h, N, d): keys and values of a group are repeated."""
        if not self.fused:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        elif self.joined_bias:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
            q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=2)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=2)
        if self.norms_all:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part, heads in ((q, self.num_heads), (k, self.kv_heads), (v, self.kv_heads))
        )
        if not self.norms_all:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rotation is not None:
            rotation = context.rotation.of_block(self.index)
            q, k = (rotate(part, rotation, half=self.turns_halves).to(v.dtype) for part in (q, k))
        if (group := self.num_heads // self.kv_heads) > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        return q, k, v


class ModernMlp(nn.Module):
    """Two layers around GELU, with a norm of what lies between them if `scale_mlp`."""

    def __init__(self, cfg: ModernConfig) -> None:
        super().__init__()
        dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
        self.split = cfg.gate == "split"
        if cfg.mlp == "swiglu" and self.split:
            self.fc1_g = Linear(dim, hidden, bias=cfg.mlp_bias)
            self.fc1_x = Linear(dim, hidden, bias=cfg.mlp_bias)
        else:
            self.fc1 = Linear(dim, 2 * hidden if cfg.mlp == "swiglu" else hidden, bias=cfg.mlp_bias)
        if cfg.mlp != "swiglu":
            self.gelu = GELUS[cfg.mlp]
        self.norm = make_norm(cfg, hidden) if cfg.scale_mlp else nn.Identity()
        self.fc2 = Linear(hidden, dim, bias=cfg.mlp_bias)
        self.drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens) -> Tokens:
        return self.drop(self.fc2(self.norm(self.gelu(self.fc1(x)))))


class ModernSwiGLU(ModernMlp):
    """fc2(norm(silu(g) · x)), with g and x from one projection or from one each (Shazeer 2020)."""

    def forward(self, x: Tokens) -> Tokens:
        gate, value = (self.fc1_g(x), self.fc1_x(x)) if self.split else self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(self.norm(F.silu(gate) * value)))


class ModernBlock(nn.Module):
    """One encoder block: attention and MLP, each in `residual`."""

    def __init__(self, cfg: ModernConfig, index: int, *, drop_path: float) -> None:
        super().__init__()
        dim, self.position = cfg.embed_dim, cfg.norm_position
        self.norm1 = make_norm(cfg, dim)
        self.attn = RotaryAttention(cfg, index)
        self.init = cfg.init_values
        scaled = (False, False) if self.init is None else (True, cfg.layer_scale == "both")
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), self.init or 0.0)) if one else None for one in scaled)
        self.drop_path1 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.norm2 = make_norm(cfg, dim)
        self.mlp = ModernSwiGLU(cfg) if cfg.mlp == "swiglu" else ModernMlp(cfg)
        self.drop_path2 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def forward(self, x: Tokens, context: RotaryContext, kept: list[Attended] | None = None) -> Tokens:
        """Apply the block; `kept` collects inputs and output of the attention."""
        x = self.residual(x, lambda y: self.attn(y, context, kept), self.norm1, self.gamma_1, self.drop_path1)
        return self.residual(x, self.mlp, self.norm2, self.gamma_2, self.drop_path2)

    def residual(
        self, x: Tokens, branch: Callable[[Tokens], Tokens], norm: nn.Module, gamma: Tensor | None, drop_path: nn.Module
    ) -> Tokens:
        """Add a branch: x + γ f(LN(x)) with norm_position "pre", LN(x + γ f(x)) with "post", x + γ LN(f(x)) with "res-post"."""
        y = branch(norm(x) if self.position == "pre" else x)
        y = norm(y) if self.position == "res-post" else y
        x = x + drop_path(y if gamma is None else gamma * y)
        return norm(x) if self.position == "post" else x

    def queries_keys_values(self, x: Tokens, context: RotaryContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of the block's attention, each (B, h, N, d)."""
        return self.attn.queries_keys_values(self.norm1(x) if self.position == "pre" else x, context)


class LatentPool(nn.Module):
    """Attention pooling whose learned query is not projected, without an MLP (AIMv2's head)."""

    def __init__(self, cfg: ModernConfig) -> None:
        super().__init__()
        self.num_heads = cfg.pool_heads or cfg.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, cfg.embed_dim))
        self.kv = Linear(cfg.embed_dim, 2 * cfg.embed_dim, bias=cfg.qkv_bias)
        self.proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)

    def forward(self, x: Tokens, mask: KeyMask | None = None, kept: list[Attended] | None = None) -> Float[Tensor, "B D"]:
        q = self.latent.expand(len(x), -1, -1).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, h, 1, d)
        k, v = self.kv(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d) each
        out = attend(q, k, v, mask, dropout=0.0)
        if kept is not None:
            kept.append(Attended(x, q, k, v, out))
        return self.proj(out.transpose(1, 2).flatten(1))


# --------------------------------------------------------------------------------------------------------------------
# The model


_NO_ROPE: dict[str, Any] = {"rope": "none", "rope_ref_grid": None, "kv_heads": None}  # heads of the pooling are not turned


class ModernViT(ViT):
    """Modern Vision Transformer of a ModernConfig, or of its fields by keyword: `ModernViT(rope="centred", norm="rms")`."""

    config: ModernConfig
    stems = ("patch_embed.proj",)

    def __init__(self, config: ModernConfig | None = None, **fields: Any) -> None:
        super().__init__(ModernConfig() if config is None else config, **fields)
        cfg = self.config
        self.rope = None if cfg.rope == "none" else Rotary(cfg)
        self.pos_grid = self.grid if cfg.pos_grid is None else pair(cfg.pos_grid)
        if self.pos_grid != self.grid:
            rows = self.placed_tokens + self.pos_grid[0] * self.pos_grid[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, cfg.embed_dim))
            self.reset_parameters({"pos_embed"})
        if cfg.pool == "map":
            ratio = cfg.mlp_ratio if cfg.pool_mlp_ratio is None else cfg.pool_mlp_ratio
            shape = dataclasses.replace(cfg, num_heads=cfg.pool_heads or cfg.num_heads, mlp_ratio=ratio, **_NO_ROPE)
            self.attn_pool = AttentionPool(shape) if cfg.pool_block else LatentPool(cfg)  # type: ignore[assignment]
            self.reset_parameters({name for name in self.state_dict() if name.startswith("attn_pool.")})
        self.no_decay = (ViT.no_decay | {"rope.freqs", "rope.cls"}) & dict(self.named_parameters()).keys()

    def make_patch_embed(self) -> PatchEmbed:
        return NormedPatchEmbed(self.config) if self.config.embed_norm else PatchEmbed(self.config)

    def make_norm(self) -> nn.Module:
        return make_norm(self.config, self.config.embed_dim)

    def make_block(self, index: int, drop_path: float) -> nn.Module:
        return ModernBlock(self.config, index, drop_path=drop_path)

    def reset_parameters(self, only: Collection[str] | None = None) -> None:
        """Initialise all layers, or those with tensors in `only`, as `ViT.reset_parameters` does; biases and norms as new."""
        only = set(self.state_dict()) if only is None else only
        super().reset_parameters(only)
        for path, module in self.named_modules():
            names = {name for name, _ in module.named_parameters(recurse=False) if f"{path}.{name}" in only}
            if names and isinstance(module, nn.RMSNorm | Rotary):
                module.reset_parameters()
            for name in names & {"q_bias", "v_bias"}:
                nn.init.zeros_(module.get_parameter(name))
            for name in names & {"gamma_1", "gamma_2"}:
                nn.init.constant_(module.get_parameter(name), self.config.init_values or 0.0)
            if "latent" in names:
                nn.init.trunc_normal_(module.get_parameter("latent"), std=0.02)

    def stages(self) -> list[Stage]:
        """Return the stages of ViT; learned frequencies belong to the stem."""
        stem, *others = super().stages()
        return [Stage(stem.name, (*stem.paths, "rope")), *others]

    # ---- positions

    def context(self, grid: Pair, *, patch: Pair, sizes: Sizes, device: torch.device) -> RotaryContext:
        """Return mask and rotation. Positions are those on each image, not on its canvas."""
        mask = None if sizes is None else token_mask(sizes, grid=grid, patch=patch, prefix=self.prefix_tokens)
        if self.rope is None:
            return RotaryContext(mask, None)
        sides = None if sizes is None else (sizes / sizes.new_tensor(patch)).ceil().float()
        return RotaryContext(mask, self.rope(grid, prefix=self.prefix_tokens, device=device, sides=sides))

    def valid_tokens(self, context: Context) -> KeyMask | None:
        """See Backbone.valid_tokens."""
        return None if context is None else context.mask

    def context_tensors(self, context: RotaryContext) -> tuple[Tensor, ...]:
        """See Backbone.context_tensors."""
        return () if context.rotation is None else tuple(context.rotation)

    def make_context(self, mask: Any, tensors: Sequence[Tensor]) -> RotaryContext:
        """See Backbone.make_context."""
        return RotaryContext(mask, Rotation(*tensors) if tensors else None)

    def keep_patches(
        self, x: Tokens, context: Context, patches: Int64[Tensor, "B _L"]
    ) -> tuple[Float[Tensor, "B _ D"], RotaryContext]:
        """Return the prefix tokens and the given patches, in that order, and their context."""
        x, mask = super().keep_patches(x, context.mask, patches)
        if context.rotation is None:
            return x, RotaryContext(mask, None)
        prefix = torch.arange(self.prefix_tokens, device=x.device).expand(len(x), -1)
        return x, RotaryContext(mask, context.rotation.of_tokens(torch.cat([prefix, patches + self.prefix_tokens], dim=1)))

    def positions(self, grid: Pair) -> Float[Tensor, "1 _ D"]:
        """Return the absolute positions at this grid; sine-cosine ones are computed, not resized."""
        cfg, prefix = self.config, self.placed_tokens
        if cfg.pos_embed == "sincos2d" and grid != self.grid:
            rows = self.get_buffer("pos_embed")[:, :prefix]
            return torch.cat([rows, sincos_2d(grid, cfg.embed_dim).to(rows)[None]], dim=1)
        assert self.pos_embed is not None
        ways: dict[str, Any] = {"how": cfg.pos_resize, "square": cfg.pos_square, "cache": self._positions}
        return positions_at(grid, self.pos_embed, trained=self.pos_grid, prefix=prefix, **ways)

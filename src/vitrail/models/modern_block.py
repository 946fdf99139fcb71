"""The block of the modern Vision Transformer, and its attention and MLP."""

# B batch · N tokens (prefix + patches) · D width · M hidden width of the MLP · h heads · d width of a head

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.activations import GELUS
from vitrail.models.attention import Attended, Tokens, attend
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.norms import make_norm
from vitrail.models.relative_mlp import RelativeMlp
from vitrail.models.rotary import RotaryContext, rotate
from vitrail.models.vit import LayerScale
from vitrail.settings.modern import ModernConfig


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose queries and keys are turned by position: softmax(R q (R k)ᵀ / √d + bias) v.

    The bias is that of relative positions, if the config has them.
    """

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
        q_width, k_width = (inner, self.kv_heads * width) if self.norms_all else (cfg.score_width,) * 2
        self.q_norm = make_norm(cfg, q_width) if cfg.qk_norm else nn.Identity()
        self.k_norm = make_norm(cfg, k_width) if cfg.qk_norm else nn.Identity()
        self.rel_pos = RelativeMlp(cfg.num_heads, cfg.relative_hidden) if cfg.relative_bias == "block" else None
        self.norm = make_norm(cfg, inner) if cfg.scale_attn_inner else nn.Identity()
        self.proj = Linear(inner, dim, bias=cfg.proj_bias)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens, context: RotaryContext, kept: list[Attended] | None = None) -> Tokens:
        bias, (q, k, v) = self.bias(context), self.queries_keys_values(x, context)
        out = attend(q, k, v, context.mask, bias, dropout=self.attn_drop_rate if self.training else 0.0)  # (B, h, N, d)
        if kept is not None:
            kept.append(Attended(x, q, k, v, out, bias))
        return self.project(out)

    def project(self, out: Float[Tensor, "B h N d"]) -> Tokens:
        """Apply the layers behind the attention of the heads."""
        return self.proj_drop(self.proj(self.norm(out.transpose(1, 2).flatten(2))))

    def bias(self, context: RotaryContext) -> Float[Tensor, "b h N N"] | None:
        """Bias of every pair of tokens: the block's own or the shared one; None without relative positions."""
        if context.relative is None:
            return None
        return context.relative.shared if self.rel_pos is None else self.rel_pos(context.relative)

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

    def __init__(self, cfg: ModernConfig, attention: RotaryAttention, *, drop_path: float) -> None:
        super().__init__()
        dim, self.position = cfg.embed_dim, cfg.norm_position
        self.norm1 = make_norm(cfg, dim)
        self.attn = attention
        for branch in ("1", "2"):
            init = cfg.init_values if branch == "1" or cfg.layer_scale == "both" else None
            scale = None if init is None else LayerScale(dim, init)
            self.register_parameter(f"gamma_{branch}", scale.gamma if scale is not None and cfg.is_eva else None)
            self.add_module(f"ls{branch}", None if cfg.is_eva else scale)
        self.drop_path1 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.norm2 = make_norm(cfg, dim)
        self.mlp = ModernSwiGLU(cfg) if cfg.mlp == "swiglu" else ModernMlp(cfg)
        self.drop_path2 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def forward(self, x: Tokens, context: RotaryContext, kept: list[Attended] | None = None) -> Tokens:
        """Apply the block; `kept` collects inputs and output of the attention."""
        x = self.residual(x, lambda y: self.attn(y, context, kept), self.norm1, self.scale("1"), self.drop_path1)
        return self.residual(x, self.mlp, self.norm2, self.scale("2"), self.drop_path2)

    def scale(self, branch: str) -> Tensor | None:
        """Return LayerScale's factors of a branch; None without LayerScale."""
        layer: Any = getattr(self, f"ls{branch}")
        gamma: Tensor | None = getattr(self, f"gamma_{branch}") if layer is None else layer.gamma
        return gamma

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

    def bias(self, context: RotaryContext) -> Float[Tensor, "b h N N"] | None:
        """Bias of the scores of the block's attention; None without relative positions."""
        return self.attn.bias(context)

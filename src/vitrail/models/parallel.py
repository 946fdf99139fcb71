"""Other blocks of the modern Vision Transformer: side by side, in pairs, and with differential attention.

Attention and MLP from one norm and one projection (Dehghani et al. 2023, ViT-22B); two attentions, then two MLPs, side by side
(Touvron et al. 2022, Three things); the difference of two attention maps (Ye et al. 2025, Differential Transformer).
"""

# B batch · N tokens · D width · M hidden width of the MLP · h heads · d = D / h width of a head

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.activations import GELUS
from vitrail.models.attention import Attended, Tokens, attend
from vitrail.models.drop_path import DropPath
from vitrail.models.linear import Linear
from vitrail.models.modern_block import ModernBlock, ModernMlp, RotaryAttention
from vitrail.models.norms import make_norm
from vitrail.models.rotary import RotaryContext
from vitrail.models.vit import LayerScale
from vitrail.settings.modern import ModernConfig

# --------------------------------------------------------------------------------------------------------------------
# Differential attention


class Difference(nn.Module):
    """Part of an attention whose heads have two maps each: norm(A₁ v - λ A₂ v) · (1 - λ₀).

    λ = exp(q₁·k₁) - exp(q₂·k₂) + λ₀, with four learned vectors, and λ₀ = 0.8 - 0.6 exp(-0.3 index) (section 2.1).
    """

    def add_lambdas(self, cfg: ModernConfig, index: int) -> None:
        """Build the parameters, under timm's names."""
        width = cfg.head_width // 2
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            self.register_parameter(name, nn.Parameter(torch.randn(width) * 0.1))
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * index)
        self.sub_norm = nn.RMSNorm(2 * width, eps=1e-5)

    def difference(self, out: Float[Tensor, "B _2h N d"]) -> Float[Tensor, "B h N d"]:
        """Subtract the second map's output of each head from the first's."""
        first, second = out.unflatten(1, (-1, 2)).unbind(2)
        plus, minus = ((q * k).sum().float().exp() for q, k in (self.vectors(1), self.vectors(2)))
        scale = (plus - minus + self.lambda_init).to(out.dtype)
        return self.sub_norm(first - scale * second) * (1 - self.lambda_init)

    def vectors(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the learned query and key of one of the two factors."""
        return self.get_parameter(f"lambda_q{number}"), self.get_parameter(f"lambda_k{number}")


class DifferentialAttention(RotaryAttention, Difference):
    """Multi-head differential attention; its `queries_keys_values` are those of the 2 h maps."""

    def __init__(self, cfg: ModernConfig, index: int) -> None:
        super().__init__(cfg, index)
        self.add_lambdas(cfg, index)

    def queries_keys_values(self, x: Tokens, context: RotaryContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys (B, 2 h, N, d / 2), those of a head behind each other, and values (B, 2 h, N, d) twice."""
        q, k, v = self.qkv(x).chunk(3, dim=2)
        q, k = (_heads(part, 2 * self.num_heads) for part in (q, k))
        return self.q_norm(q), self.k_norm(k), _heads(v, self.num_heads).repeat_interleave(2, dim=1)

    def project(self, out: Float[Tensor, "B _2h N d"]) -> Tokens:
        return super().project(self.difference(out))


def _heads(x: Float[Tensor, "B N D"], count: int) -> Float[Tensor, "B h N d"]:
    return x.unflatten(2, (count, -1)).transpose(1, 2)


# --------------------------------------------------------------------------------------------------------------------
# Blocks


class ParallelBlock(Difference):
    """Attention and MLP side by side: x + γ (W_a MSA(LN(x)) + W_m MLP(LN(x))) (equation 1 of ViT-22B).

    One layer has the first projections of both. With differential attention the last ones are one layer too, as in timm.
    """

    def __init__(self, cfg: ModernConfig, index: int, *, drop_path: float) -> None:
        super().__init__()
        dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
        self.num_heads, self.attn_drop_rate = cfg.num_heads, cfg.attn_drop_rate
        self.differential = cfg.attention == "differential"
        self.widths = [hidden, dim, dim, dim]
        self.in_norm = make_norm(cfg, dim)
        self.in_proj = Linear(dim, hidden + 3 * dim, bias=cfg.qkv_bias)
        self.mlp_bias = None if cfg.qkv_bias else nn.Parameter(torch.zeros(hidden))
        self.q_norm = make_norm(cfg, cfg.score_width) if cfg.qk_norm else nn.Identity()
        self.k_norm = make_norm(cfg, cfg.score_width) if cfg.qk_norm else nn.Identity()
        self.gelu, self.mlp_drop = GELUS[cfg.mlp], nn.Dropout(cfg.proj_drop_rate)
        if self.differential:
            self.add_lambdas(cfg, index)
            self.out_proj = Linear(dim + hidden, dim, bias=cfg.proj_bias)
        else:
            self.attn_out_proj = Linear(dim, dim, bias=cfg.proj_bias)
            self.mlp_out_proj = Linear(hidden, dim, bias=cfg.proj_bias)
        self.ls = nn.Identity() if cfg.init_values is None else LayerScale(dim, cfg.init_values)
        self.drop_path = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def forward(self, x: Tokens, context: RotaryContext, kept: list[Attended] | None = None) -> Tokens:
        """Apply the block; `kept` collects inputs and output of the attention."""
        tokens = self.in_norm(x)
        hidden, q, k, v = self.projected(tokens)
        out = attend(q, k, v, context.mask, dropout=self.attn_drop_rate if self.training else 0.0)
        if kept is not None:
            kept.append(Attended(tokens, q, k, v, out))
        attended = (self.difference(out) if self.differential else out).transpose(1, 2).flatten(2)  # (B, N, D)
        hidden = self.mlp_drop(self.gelu(hidden))
        if self.differential:
            y = self.out_proj(torch.cat([attended, hidden], dim=2))
        else:
            y = self.attn_out_proj(attended) + self.mlp_out_proj(hidden)
        return x + self.drop_path(self.ls(y))

    def projected(self, tokens: Tokens) -> tuple[Float[Tensor, "B N M"], Tensor, Tensor, Tensor]:
        """Return the MLP's hidden layer before GELU, and queries, keys and values of each map."""
        hidden, q, k, v = self.in_proj(tokens).split(self.widths, dim=2)
        hidden = hidden if self.mlp_bias is None else hidden + self.mlp_bias
        maps = 2 * self.num_heads if self.differential else self.num_heads
        values = _heads(v, self.num_heads)
        values = values.repeat_interleave(2, dim=1) if self.differential else values
        return hidden, self.q_norm(_heads(q, maps)), self.k_norm(_heads(k, maps)), values

    def queries_keys_values(self, x: Tokens, context: RotaryContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of the block's attention, as `RotaryAttention` or `DifferentialAttention` does."""
        return self.projected(self.in_norm(x))[1:]

    def bias(self, context: RotaryContext) -> None:
        """Bias of the scores: there is none."""


class Branch(nn.Module):
    """One of the branches of a PairBlock."""

    def __init__(self, cfg: ModernConfig, *, drop_path: float, **layer: nn.Module) -> None:
        super().__init__()
        self.norm = make_norm(cfg, cfg.embed_dim)
        for name, module in layer.items():
            self.add_module(name, module)
        self.ls = nn.Identity() if cfg.init_values is None else LayerScale(cfg.embed_dim, cfg.init_values)
        self.drop_path = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def end(self, y: Tokens) -> Tokens:
        """Scale and drop the branch's output."""
        return self.drop_path(self.ls(y))


class PairBlock(nn.Module):
    """Two attentions side by side, then two MLPs: z' = z + Σ γᵢ MSAᵢ(LNᵢ(z)), z = z' + Σ γᵢ MLPᵢ(LNᵢ(z')) (equation 3).

    The heads of both attentions are computed together.
    """

    def __init__(self, cfg: ModernConfig, index: int, *, drop_path: float) -> None:
        super().__init__()
        self.attn_drop_rate = cfg.attn_drop_rate
        self.attns = nn.ModuleList(Branch(cfg, drop_path=drop_path, attn=RotaryAttention(cfg, index)) for _ in range(2))
        self.ffns = nn.ModuleList(Branch(cfg, drop_path=drop_path, mlp=ModernMlp(cfg)) for _ in range(2))

    def forward(self, x: Tokens, context: RotaryContext, kept: list[Attended] | None = None) -> Tokens:
        """Apply the block; `kept` collects inputs and output of both attentions: tokens before the norms, 2 h heads."""
        tokens = x.view_as(x)  # a tensor of its own, for gradients that pass attention alone
        q, k, v = self.queries_keys_values(tokens, context)
        out = attend(q, k, v, context.mask, dropout=self.attn_drop_rate if self.training else 0.0)
        if kept is not None:
            kept.append(Attended(tokens, q, k, v, out))
        first, second = (one.end(one.attn.project(part)) for one, part in zip(self.attns, out.chunk(2, dim=1), strict=True))  # type: ignore[union-attr, operator]
        x = x + first + second
        first, second = (one.end(one.mlp(one.norm(x))) for one in self.ffns)  # type: ignore[operator]
        return x + first + second

    def queries_keys_values(self, x: Tokens, context: RotaryContext) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of both attentions, each (B, 2 h, N, d)."""
        parts = [one.attn.queries_keys_values(one.norm(x), context) for one in self.attns]  # type: ignore[union-attr, operator]
        q, k, v = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return q, k, v

    def bias(self, context: RotaryContext) -> None:
        """Bias of the scores: there is none."""


def make_block(cfg: ModernConfig, index: int, *, drop_path: float) -> nn.Module:
    """Build the block that a config says."""
    if cfg.block == "parallel":
        return ParallelBlock(cfg, index, drop_path=drop_path)
    if cfg.block == "pair":
        return PairBlock(cfg, index, drop_path=drop_path)
    attention = DifferentialAttention if cfg.attention == "differential" else RotaryAttention
    return ModernBlock(cfg, attention(cfg, index), drop_path=drop_path)

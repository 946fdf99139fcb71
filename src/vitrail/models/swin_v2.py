"""The Swin Transformer, version 2 (Liu et al. 2022): cosine attention, continuous relative positions, norms after the branches.

    images (B, C, H, W) -> PatchEmbed -> stages of blocks, with patch merging between -> norm -> mean -> head -> logits (B, K)

State-dict keys are timm's. Windows, padding and shift are those of version 1 (models/swin.py) and of torchvision: a map that
windows do not divide is padded with zeros before the shift, and a map smaller than a window is padded to one. The paper's
code, timm and transformers cut the window down to a smaller map at the image size that a model is built for, which
`window_sizes` says for each stage; timm shifts before it pads, so its outputs differ where both happen.
"""

# B batch · L positions = H W of a feature map · D width of a stage · h heads · d = D / h · w side of a window
# n windows of an image · K classes

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.linear import Linear
from vitrail.models.swin import Swin, SwinBlock, SwinStage, neighbours
from vitrail.models.windows import Map, WindowLayout, relative_index
from vitrail.settings import Pair, configured
from vitrail.settings.swin_v2 import SwinV2Config

_HIDDEN = 512
"""Hidden width of the network of positions, the paper's."""


class CosineAttention(nn.Module):
    """Self-attention within windows: softmax(cos(q, k) / τ + bias of the relative position) v (equation 2)."""

    def __init__(self, cfg: SwinV2Config, stage: int) -> None:
        super().__init__()
        dim, self.num_heads, self.window = cfg.width(stage), cfg.num_heads[stage], cfg.window(stage)
        self.pretrained_window = cfg.pretrained_window(stage)
        self.logit_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), math.log(10)))  # log(1 / τ)
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, _HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, self.num_heads, bias=False)
        )
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if cfg.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if cfg.qkv_bias else None
        self.attn_drop = nn.Dropout(cfg.attn_drop_rate)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Map, layout: WindowLayout) -> Map:
        q, k, v = self.qkv(layout.cut(x)).unflatten(3, (3, -1)).unbind(3)  # (B, n, w w, D) each
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        q, k, v = (each.unflatten(3, (self.num_heads, -1)).transpose(2, 3) for each in (q, k, v))  # (B, n, h, w w, d)
        weights = cosine_weights(q, k, self.logit_scale, self.bias(), layout)  # (B, n, h, w w, w w)
        out = self.attn_drop(weights) @ v
        return self.proj_drop(self.proj(layout.join(out.transpose(2, 3).flatten(3))))

    def bias(self) -> Float[Tensor, "h _w _w"]:
        """Bias of every pair of positions in a window, between 0 and 16: a small network of their offset (equation 3)."""
        weight = self.logit_scale
        offsets = log_offsets(self.window, unit=self.pretrained_window, device=weight.device).to(weight.dtype)
        table = 16 * self.cpb_mlp(offsets).sigmoid()  # (offsets, h)
        return table[relative_index(self.window, device=weight.device)].permute(2, 0, 1)

    @property
    def bias_network(self) -> nn.Module:
        """Network that computes the bias from offsets."""
        return self.cpb_mlp


def cosine_weights(
    q: Float[Tensor, "B n h _w d"],
    k: Float[Tensor, "B n h _w d"],
    log_scale: Float[Tensor, "h 1 1"],
    bias: Float[Tensor, "h _w _w"],
    layout: WindowLayout,
) -> Float[Tensor, "B n h _w _w"]:
    """Return attention weights softmax(cos(q, k) / τ + bias) within windows, of log(1 / τ)."""
    scale = log_scale.clamp(max=math.log(100)).exp()  # τ is at least 0.01
    scores = F.normalize(q, dim=-1) * scale @ F.normalize(k, dim=-1).transpose(-2, -1) + bias
    if (mask := layout.mask(q.device)) is not None:
        scores = scores.masked_fill(mask[:, None], float("-inf"))
    return scores.softmax(dim=-1)


def log_offsets(window: int, *, unit: int, device: torch.device | None = None) -> Float[Tensor, "_offsets 2"]:
    """Return every offset (down, across) in a window, in the order of `relative_index`, on a logarithmic scale (equation 4).

    Offsets of a window of `unit` positions fill -8 to 8 before the logarithm, and about -1 to 1 behind it.
    """
    offset = torch.arange(1 - window, window, device=device, dtype=torch.float32) * (8 / max(unit - 1, 1))
    sign = offset.sign()
    logs = sign * (sign * offset + 1).log2() / 3  # log2(8); OpenVINO 2026.4 drops an abs() of what arange made
    return torch.cartesian_prod(logs, logs)


class SwinV2Block(SwinBlock):
    """Block with its norms behind attention and MLP, every other one with shifted windows (section 3.2)."""

    attention_type: Callable[[Any, int], Any] = CosineAttention

    def forward(self, x: Map, grid: Pair) -> Map:
        layout = WindowLayout.of(grid, window=self.window, shifted=self.shifted)
        return self.branches(x, layout)

    def branches(self, x: Map, layout: WindowLayout) -> Map:
        """Apply attention in windows of a layout, and the MLP."""
        x = x + self.drop_path1(self.norm1(self.attn(x, layout)))  # ẑ = LN((S)W-MSA(z)) + z
        return x + self.drop_path2(self.norm2(self.mlp(x)))  # z = LN(MLP(ẑ)) + ẑ

    def empty_branches(self) -> None:
        """Initialise norms such that the branches add nothing."""
        for norm in (self.norm1, self.norm2):
            nn.init.zeros_(norm.weight)


class PatchMergingV2(nn.Module):
    """Patch merging: each 2x2 positions become one of twice the width, with the norm behind the projection."""

    def __init__(self, cfg: SwinV2Config, dim: int) -> None:
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim, eps=cfg.norm_eps)

    def forward(self, x: Map, grid: Pair) -> Float[Tensor, "B _new 2*D"]:
        return self.norm(self.reduction(neighbours(x, grid)))


class SwinV2Stage(SwinStage):
    """Blocks at one resolution, after the patch merging that leads to it."""

    block_type = SwinV2Block
    merging_type = PatchMergingV2


class SwinV2(Swin):
    """Swin Transformer of a SwinV2Config, or of its fields by keyword: `SwinV2(embed_dim=96, window_size=8)`."""

    config: SwinV2Config
    stage_type = SwinV2Stage
    undecayed = ("cpb_mlp", "logit_scale")

    def __init__(self, config: SwinV2Config | None = None, **fields: Any) -> None:
        super().__init__(configured(SwinV2Config() if config is None else config, fields))

    def reset_parameters(self) -> None:
        """Initialise all weights as in the paper's code: as version 1, with branches that add nothing at first."""
        super().reset_parameters()
        for module in self.modules():
            if isinstance(module, SwinV2Block):
                module.empty_branches()
            elif isinstance(module, CosineAttention):
                nn.init.constant_(module.logit_scale, math.log(10))
                for bias in (module.q_bias, module.v_bias):
                    if bias is not None:
                        nn.init.zeros_(bias)

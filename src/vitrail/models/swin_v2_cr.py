"""The Swin Transformer V2-CR: version 2 (Liu et al. 2022) in Christoph Reich's implementation, as timm has it.

    images (B, C, H, W) -> PatchEmbed -> stages of blocks, with patch merging between -> mean -> head -> logits (B, K)

Cosine attention and the norms at the end of the branches are those of version 2 (models/swin_v2.py), patch merging is version
1's. What differs: the bias of a pair of positions is the network's output itself, of offsets that are counted, not scaled by a
window; queries, keys and values all have biases; windows grow with the image that a model is built for, an eighth of its sides;
and norms stand behind some blocks, of which the last is the final norm. State-dict keys are timm's, with `layers` for its
`stages`; files have timm's.

At images of another size than `img_size` windows and shifts stay, as in timm with `dynamic_img_size`. A map that windows do not
divide is shifted, then padded with zeros, as in timm; sides of an image that the patch does not divide are padded, where timm
leaves the rest out. timm drops an eighth of the network's hidden layer in training, which is not done here.
"""

# B batch · L positions = H W of a feature map · D width of a stage · h heads · d = D / h · w positions of a window
# n windows of an image · K classes

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.linear import Linear
from vitrail.models.relative_mlp import OffsetMlp, log_spaced
from vitrail.models.swin import SwinBackbone, SwinStage
from vitrail.models.swin_v2 import SwinV2Block, cosine_weights
from vitrail.models.windows import Map, WindowLayout, relative_index
from vitrail.settings import Pair, configured
from vitrail.settings.swin_v2_cr import SwinV2CrConfig

_HIDDEN = 384
"""Hidden width of the network of positions, timm's."""


class CrAttention(nn.Module):
    """Self-attention within windows: softmax(cos(q, k) / τ + bias of the relative position) v (equation 2)."""

    def __init__(self, cfg: SwinV2CrConfig, stage: int) -> None:
        super().__init__()
        dim, self.num_heads, self.window = cfg.width(stage), cfg.num_heads[stage], cfg.window(stage)
        self.qkv = Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(cfg.attn_drop_rate)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)
        self.meta_mlp = OffsetMlp(self.num_heads, _HIDDEN)
        self.logit_scale = nn.Parameter(torch.full((self.num_heads,), math.log(10)))  # log(1 / τ)

    def forward(self, x: Map, layout: WindowLayout) -> Map:
        q, k, v = self.qkv(layout.cut(x)).unflatten(3, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, n, h, w, d)
        weights = cosine_weights(q, k, self.logit_scale[:, None, None], self.bias(), layout)  # (B, n, h, w, w)
        out = self.attn_drop(weights) @ v
        return self.proj_drop(self.proj(layout.join(out.transpose(2, 3).flatten(3))))

    def bias(self) -> Float[Tensor, "h _w _w"]:
        """Bias of every pair of positions in a window: a small network of their offset on a logarithmic scale."""
        weight = self.logit_scale
        down, across = (torch.arange(1 - side, side, device=weight.device, dtype=torch.float32) for side in self.window)
        table = self.meta_mlp(log_spaced(torch.cartesian_prod(down, across)).to(weight.dtype))  # (offsets, h)
        return table[relative_index(self.window, device=weight.device)].permute(2, 0, 1)

    @property
    def bias_network(self) -> nn.Module:
        """Network that computes the bias from offsets."""
        return self.meta_mlp


class SwinV2CrBlock(SwinV2Block):
    """Block of version 2, with a norm behind some of them."""

    attention_type = CrAttention

    def __init__(self, cfg: SwinV2CrConfig, stage: int, *, index: int, drop_path: float) -> None:
        super().__init__(cfg, stage, index=index, drop_path=drop_path)
        self.shift = cfg.shift(stage) if self.shifted else (0, 0)
        extra = cfg.has_extra_norm(stage, index)
        self.norm3 = nn.LayerNorm(cfg.width(stage), eps=cfg.norm_eps) if extra else nn.Identity()

    def forward(self, x: Map, grid: Pair) -> Map:
        layout = WindowLayout.shifted_by(grid, window=self.attn.window, shift=self.shift, pad_first=False)
        return self.norm3(self.branches(x, layout))


class SwinV2CrStage(SwinStage):
    """Blocks at one resolution, after the patch merging that leads to it."""

    block_type = SwinV2CrBlock


class SwinV2Cr(SwinBackbone):
    """Swin Transformer V2-CR of a SwinV2CrConfig, or of its fields by keyword: `SwinV2Cr(embed_dim=96, img_size=384)`."""

    config: SwinV2CrConfig
    stage_type = SwinV2CrStage
    undecayed = ("meta_mlp", "logit_scale")

    def __init__(self, config: SwinV2CrConfig | None = None, **fields: Any) -> None:
        super().__init__(configured(SwinV2CrConfig() if config is None else config, fields))
        self.norm = nn.Identity()  # the last block's `norm3` is the final norm

    @staticmethod
    def one_of_each(config: Any) -> tuple[Any, list[int]]:
        """See `BackboneBuilder.one_of_each`: a block without a norm behind and, in stages that have it, one with it."""
        behind = [
            sum(config.has_extra_norm(stage, index) for index in range(depth)) for stage, depth in enumerate(config.depths)
        ]
        early = any(behind[:-1])
        kinds = (1 + early,) * (len(behind) - 1) + (2,)  # the last stage ends with a norm
        shallow = dataclasses.replace(config, depths=kinds, extra_norm_period=0, extra_norm_stage=early, final_norm=True)
        counts = [
            count
            for depth, norms, kind in zip(config.depths, behind, kinds, strict=True)
            for count in (depth - norms, norms)[:kind]
        ]
        return shallow, counts

    def reset_parameters(self) -> None:
        """Initialise all weights as those of version 2: branches add nothing at first."""
        super().reset_parameters()
        for module in self.modules():
            if isinstance(module, SwinV2CrBlock):
                module.empty_branches()
            elif isinstance(module, CrAttention):
                nn.init.constant_(module.logit_scale, math.log(10))

"""The convolutional stem of Xiao et al. 2021."""

from __future__ import annotations

import torch
from torch import nn

from vitrail.settings import Pair, ViTConfig, pair


def conv_stem(cfg: ViTConfig) -> tuple[nn.Module, int, Pair]:
    """Return the convolutional stem, its output channels, and the patch size left for the projection.

    Each convolution halves the image, as often as the patch is even, four times at most; widths double up to D. One more
    at full width looks around without halving.
    """
    height, width = pair(cfg.patch_size)
    halvings = 0
    while halvings < 4 and height % 2 == 0 and width % 2 == 0:
        height, width, halvings = height // 2, width // 2, halvings + 1
    if not halvings:
        raise ValueError(
            f'patch_size {cfg.patch_size} is odd, and stem "conv" halves the image; use an even patch or stem "patch"'
        )
    widths = [max(8, cfg.embed_dim >> left) for left in reversed(range(halvings))]  # …, D/4, D/2, D
    layers: list[nn.Module] = []
    before = cfg.in_channels
    for after, stride in [*((width, 2) for width in widths), (widths[-1], 1)]:
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    stem = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # 1.8x as fast
    return stem, before, (height, width)

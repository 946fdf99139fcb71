"""Tiny hybrids of timm: its own modules, with a CNN of half its width and few blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import HybridEmbed, StdConv2dSame
from timm.models._features import FeatureListNet
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

WIDTH, DIM = 32, 24
SHAPE: dict[str, Any] = {"embed_dim": DIM, "depth": 2, "num_heads": 3, "num_classes": 5}
KINDS: dict[str, dict[str, Any]] = {  # our fields
    "bit": {"cnn": "bit", "cnn_depths": (2, 1), "patch_size": 8},
    "bit, patches of two cells": {"cnn": "bit", "cnn_depths": (1, 1, 1), "patch_size": (32, 16)},
    "bit, first layer alone": {"cnn": "bit", "cnn_depths": (), "patch_size": 16},
    "resnet-d": {"cnn": "resnet-d", "cnn_depths": (1, 2, 1), "patch_size": 16},
    "patches": {"cnn": "patches", "cnn_depths": (), "patch_size": 16, "no_embed_class": True},
}


def randomise(model: nn.Module) -> Any:
    """With weights and statistics that tell everything apart."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator) * (0.2 if value.ndim > 1 or "norm" in name else 0.1))
            if "running_var" in name:
                value.abs_().add_(0.5)
    return model.eval()


def timm_hybrid(kind: str, *, img_size: int | tuple[int, int] = 64, channels: int = 3, **arguments: Any) -> Any:
    """A hybrid of timm's VisionTransformer and HybridEmbed, with random weights."""
    torch.manual_seed(0)
    fields = KINDS[kind]
    depths, args = fields["cnn_depths"], dict[str, Any]()
    if fields["cnn"] == "patches":
        cnn: Any = ConvStem(channels, 3, (DIM // 4, DIM // 4, DIM), (4, 2, 2), (4, 2, 2), 0, act_layer=nn.GELU)
        args = {"proj": False}
        arguments = {"no_embed_class": True, **arguments}
    elif fields["cnn"] == "resnet-d":
        planes = tuple(WIDTH * 2**stage for stage in range(len(depths)))
        shape: dict[str, Any] = {"stem_width": WIDTH // 2, "stem_type": "deep", "avg_down": True, "channels": planes}
        net = ResNet(Bottleneck, depths, in_chans=channels, **shape)
        cnn = FeatureListNet(net, out_indices=(len(depths),))
    else:
        conv = partial(StdConv2dSame, eps=1e-8)
        cnn = create_resnetv2_stem(channels, WIDTH, "same", preact=False, conv_layer=conv)
        if depths:
            widths = tuple(WIDTH * 4 * 2**stage for stage in range(len(depths)))
            shape = {"channels": widths, "stem_chs": WIDTH, "stem_type": "same", "preact": False, "conv_layer": conv}
            cnn = ResNetV2(depths, num_classes=0, global_pool="", in_chans=channels, **shape)
    stride = 16 if fields["cnn"] == "patches" else 4 * 2 ** max(0, len(depths) - 1)
    patch = fields["patch_size"]
    cells = patch // stride if isinstance(patch, int) else tuple(side // stride for side in patch)
    embed = partial(HybridEmbed, backbone=cnn, **args)
    sizes = {"img_size": img_size, "patch_size": cells, "in_chans": channels}
    return randomise(VisionTransformer(**{**SHAPE, **sizes, "embed_layer": embed, **arguments}))

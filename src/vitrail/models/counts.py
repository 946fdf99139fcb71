"""Parameters, bytes and floating-point operations of a model, without running it.

A family with a formula is built on torch's meta device with one block of each kind: blocks of a kind are equal, so that gives
every depth, and operations follow from the shapes of the layers. Tests hold the formulas to what torch counts in a forward
pass. A model of another family is built in full, and torch counts its forward pass: exact as well, but slow, as it loads the
compiler.
"""

# H W feature map · L patches · N tokens · D width · h heads · d = D / h · w side of a window

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from vitrail.models.backbone import Backbone, on_meta
from vitrail.models.cait import Cait, CaitBlock, CaitClassBlock
from vitrail.models.cvt import FIRST, LATER, Cvt, CvtBlock, Geometry
from vitrail.models.families import build_on_meta, check_config
from vitrail.models.resnet_stem import Cnn
from vitrail.models.swin import SwinBackbone, SwinBlock
from vitrail.models.vit import Block, ViT
from vitrail.models.vitdet import VitDet, VitDetBlock
from vitrail.models.windows import WindowLayout
from vitrail.settings import Pair, ViTConfig, pair
from vitrail.settings.beit import BeitConfig
from vitrail.settings.cait import CaitConfig
from vitrail.settings.cvt import CvtConfig
from vitrail.settings.hybrid import HybridConfig
from vitrail.settings.modern import ModernConfig
from vitrail.settings.swin import SwinConfig, SwinShape
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.settings.swin_v2_cr import SwinV2CrConfig
from vitrail.settings.vitdet import VitDetConfig


class Counts(NamedTuple):
    """Size of a model, and the cost of a forward pass for one image."""

    parameters: int
    weights_bytes: int
    """Bytes of the state dict."""
    flops: int
    """Operations of matrix products and convolutions; a multiply-add is two."""

    def __add__(self, other: object) -> Counts:
        """Add field by field."""
        return Counts(*map(sum, zip(self, other, strict=True))) if isinstance(other, Counts) else NotImplemented

    def __mul__(self, times: object) -> Counts:
        """Multiply every field."""
        return Counts(*(number * times for number in self)) if isinstance(times, int) else NotImplemented


def count(config: Any) -> Counts:
    """Count a model of any family. Raises ValueError for an invalid config."""
    formula = FORMULAS.get(type(config))
    if formula is not None:
        return formula(config)
    check_config(config)
    return count_pass(build_on_meta(config).eval())


def count_pass(model: Backbone) -> Counts:
    """Count a model on the meta device by its forward pass."""
    from torch.utils.flop_counter import FlopCounterMode  # takes as long to load as the formulas take for a whole table

    image = torch.empty(1, model.config.in_channels, *pair(model.config.img_size), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return _size(model, counter.get_total_flops())


def shallow_vit(config: ViTConfig) -> ViT:
    """Build a ViT, or one of a family made of it, on the meta device with one block instead of all; none if it has none."""
    model = build_on_meta(dataclasses.replace(config, depth=min(config.depth, 1)))
    assert isinstance(model, ViT)
    return model


def count_vit(config: ViTConfig) -> Counts:
    """Count a ViT by formula."""
    stem_and_head, block = count_vit_parts(shallow_vit(config))
    return stem_and_head + block * config.depth


def count_vit_parts(model: ViT) -> tuple[Counts, Counts]:
    """Count the stem and head, and one block, of a model with one block or none."""
    cfg, patches = model.config, model.grid[0] * model.grid[1]
    tokens, flops = model.prefix_tokens + patches, 0
    height, width = pair(cfg.img_size)
    for layer in model.patch_embed.stem.modules():
        if isinstance(layer, nn.Conv2d):
            height, width = -(-height // layer.stride[0]), -(-width // layer.stride[1])
            flops += _product(layer, rows=height * width)
    if isinstance(model.patch_embed.proj, nn.Conv2d):  # MobileCLIP's last convolution gives the tokens
        flops += _product(model.patch_embed.proj, rows=patches)
    if model.attn_pool is not None:
        keys = tokens if cfg.pool_include_prefix else patches
        flops += _linears(model.attn_pool, rows=1) + (keys - 1) * _linears(model.attn_pool.kv, rows=1)
        flops += _attention(queries=1, keys=keys, width=cfg.embed_dim)
    for head in (model.pre_logits, model.head, model.head_dist):
        flops += 0 if head is None else _linears(head, rows=1)
    block = Counts(0, 0, 0)
    for one in cast(Iterable[Block], model.blocks):
        inner = cfg.num_heads * (cfg.head_dim or cfg.embed_dim // cfg.num_heads)
        attention = _attention(queries=tokens, keys=tokens, width=inner)
        block = _size(one, _linears(one, rows=tokens) + attention)
    return _size(model, flops + block.flops) + block * -1, block


def count_hybrid(config: HybridConfig) -> Counts:
    """Count a hybrid ViT by formula: the image's sides are multiples of all strides of its CNN."""
    model = shallow_vit(config)
    stem_and_head, block = count_vit_parts(model)
    cnn, size, stride, flops = model.patch_embed.get_submodule("backbone"), pair(config.img_size), 1, 0
    assert isinstance(cnn, Cnn)
    for path in cnn.root_paths:
        for layer in cnn.get_submodule(path).modules():
            if isinstance(layer, nn.Conv2d):
                stride *= layer.stride[0]
                flops += _product(layer, rows=math.prod(side // stride for side in size))
    for number, stage in enumerate(cnn.stages_in_order()):
        for path, layer in stage.named_modules():
            if isinstance(layer, nn.Conv2d):
                before = path in ("0.conv1", "blocks.0.conv1")  # the next convolution halves the map
                stride = 4 * 2 ** max(0, number - before)
                flops += _product(layer, rows=math.prod(side // stride for side in size))
    return stem_and_head + block * config.depth + Counts(0, 0, flops)


def count_modern(config: ModernConfig) -> Counts:
    """Count a modern ViT by formula if that is exact, else by its forward pass."""
    return count_vit(config) if is_uniform(config) else count_pass(build_on_meta(config).eval())


def is_uniform(config: ModernConfig) -> bool:
    """Return False for a modern ViT whose blocks differ or are of another kind, or whose stem grows with them."""
    plain = config.block == "serial" and config.attention == "softmax" and config.relative_bias == "none"
    return plain and config.kv_heads is None and config.rope != "mixed"


def count_swin(config: SwinShape) -> Counts:
    """Count a Swin by formula: a window's part runs on the padded map, the rest on the map."""
    model = build_on_meta(dataclasses.replace(config, depths=(1,) * len(config.depths)))
    assert isinstance(model, SwinBackbone)
    grid: Pair = tuple(-(-side // config.patch_size) for side in pair(config.img_size))  # type: ignore[assignment]
    total = _size(model, _product(model.patch_embed.proj, rows=math.prod(grid)) + _linears(model.head, rows=1))
    for layer, depth in zip(model.layers, config.depths, strict=True):
        if layer.downsample is not None:
            grid = -(-grid[0] // 2), -(-grid[1] // 2)
            total += Counts(0, 0, _linears(layer.downsample, rows=math.prod(grid)))  # type: ignore[arg-type]
        (block,) = layer.blocks  # type: ignore[misc]
        one = _size(block, _swin_block(block, grid))
        total += one * (depth - 1) + Counts(0, 0, one.flops)
    return total


def _swin_block(block: SwinBlock, grid: Pair) -> int:
    positions = math.prod(grid)
    padded = math.prod(WindowLayout.of(grid, window=block.window, shifted=False).padded)
    qkv, window = block.attn.qkv, pair(block.window)
    flops = _linears(block, rows=positions) + (padded - positions) * _linears(qkv, rows=1)
    if block.attn.bias_network is not None:  # runs on the offsets in a window
        offsets = math.prod(2 * side - 1 for side in window)
        flops += (offsets - positions) * _linears(block.attn.bias_network, rows=1)
    return flops + _attention(queries=padded, keys=math.prod(window), width=qkv.in_features)


def count_swin_v2_cr(config: SwinV2CrConfig) -> Counts:
    """Count a Swin V2-CR by formula: its blocks differ by the norms behind some of them."""
    plain = dataclasses.replace(config, extra_norm_period=0, extra_norm_stage=False, final_norm=False)
    behind = [
        2 * config.width(stage)
        for stage, depth in enumerate(config.depths)
        for index in range(depth)
        if config.has_extra_norm(stage, index)
    ]
    return count_swin(plain) + Counts(sum(behind), sum(behind) * torch.get_default_dtype().itemsize, 0)


def count_cait(config: CaitConfig) -> Counts:
    """Count a CaiT by formula: talking heads mix the weights of every pair of patches, class attention has one query."""
    model = on_meta(lambda: Cait(dataclasses.replace(config, depth=1, class_depth=1)))
    patches, (block,), (last,) = math.prod(model.grid), model.blocks, model.blocks_token_only
    assert isinstance(block, CaitBlock)
    assert isinstance(last, CaitClassBlock)
    attn, for_class = block.attn, last.attn
    talk = _linears(attn.proj_l, rows=1) + _linears(attn.proj_w, rows=1)
    among = patches * (_linears(block, rows=1) + (patches - 1) * talk)
    among += _attention(queries=patches, keys=patches, width=config.embed_dim)
    class_flops = _linears(last, rows=1) + _linears(for_class.k, rows=patches) + _linears(for_class.v, rows=patches)
    class_flops += _attention(queries=1, keys=1 + patches, width=config.embed_dim)
    total = _size(model, _product(model.patch_embed.proj, rows=patches) + _linears(model.head, rows=1))
    for part, flops, depth in ((block, among, config.depth), (last, class_flops, config.class_depth)):
        one = _size(part, flops)
        total += one * (depth - 1) + Counts(0, 0, one.flops)
    return total


def count_cvt(config: CvtConfig) -> Counts:
    """Count a CvT by formula: keys and values are those of a smaller map."""
    model = on_meta(lambda: Cvt(dataclasses.replace(config, depths=(1,) * len(config.depths))))
    total, grid = _size(model, _linears(model.head, rows=1)), pair(config.img_size)
    for number, (part, depth) in enumerate(zip(model.parts, config.depths, strict=True)):
        grid = _strided(grid, LATER if number else FIRST)
        (block,) = part.blocks
        assert isinstance(block, CvtBlock)
        one = _size(block, _cvt_block(block, grid, cls=part.cls_token is not None))
        total += one * (depth - 1) + Counts(0, 0, one.flops + _product(part.patch_embed.proj, rows=math.prod(grid)))
    return total


def _cvt_block(block: CvtBlock, grid: Pair, *, cls: bool) -> int:
    attn, positions = block.attn, math.prod(grid)
    keys = math.prod(_strided(grid, Geometry(3, attn.conv_proj_k.stride, 1)))
    flops = _linears(block, rows=positions + cls)
    for to_keys in (attn.proj_k, attn.proj_v):
        flops -= _linears(to_keys, rows=positions - keys)
    for projection, rows in ((attn.conv_proj_q, positions), (attn.conv_proj_k, keys), (attn.conv_proj_v, keys)):
        flops += _product(projection.conv, rows=rows)
    return flops + _attention(queries=positions + cls, keys=keys + cls, width=attn.proj.in_features)


def count_vitdet(config: VitDetConfig) -> Counts:
    """Count a ViTDet by formula: its blocks are in windows or over the whole image, with a bottleneck or without."""
    kinds = Counter((config.is_global(block), block in config.residual_blocks) for block in range(config.depth))
    blocks, outside = Counts(0, 0, 0), Counts(0, 0, 0)
    for (whole, bottleneck), depth in kinds.items():
        only: dict[str, Any] = {"global_blocks": (0,) * whole, "residual_blocks": (0,) * bottleneck}
        model = on_meta(functools.partial(VitDet, dataclasses.replace(config, depth=1, **only)))
        (block,), patches = model.blocks, math.prod(model.grid)
        assert isinstance(block, VitDetBlock)
        one, stem = _size(block, _vitdet_block(block, model.grid)), _product(model.patch_embed.proj, rows=patches)
        neck_and_head = _convolutions(model.neck, rows=patches) + _linears(model.head, rows=1)
        outside = _size(model, one.flops + stem + neck_and_head) + one * -1  # the same of every kind
        blocks += one * depth
    return outside + blocks


def _vitdet_block(block: VitDetBlock, grid: Pair) -> int:
    positions, attn, sides = math.prod(grid), block.attn, (block.window, block.window) if block.window else grid
    padded = math.prod(WindowLayout.of(grid, window=block.window, shifted=False).padded) if block.window else positions
    width = attn.proj.in_features
    flops = _linears(block, rows=positions) + (padded - positions) * _linears(attn, rows=1)
    flops += _attention(queries=padded, keys=math.prod(sides), width=width)
    if attn.rel_pos_h is not None:
        flops += 2 * padded * sum(sides) * width  # q · r and q · c
    return flops + (0 if block.residual is None else _convolutions(block.residual, rows=positions))


def _strided(sides: Pair, geometry: Geometry) -> Pair:
    """Return the sides of a convolution's output."""
    height, width = ((side + 2 * geometry.padding - geometry.kernel) // geometry.stride + 1 for side in sides)
    return height, width


FORMULAS: dict[type[Any], Callable[[Any], Counts]] = {
    ViTConfig: count_vit,
    SwinConfig: count_swin,
    SwinV2Config: count_swin,
    SwinV2CrConfig: count_swin_v2_cr,
    BeitConfig: count_vit,
    CaitConfig: count_cait,
    CvtConfig: count_cvt,
    HybridConfig: count_hybrid,
    ModernConfig: count_modern,
    VitDetConfig: count_vitdet,
}
"""Families that are counted by formula."""


def _size(module: nn.Module, flops: int) -> Counts:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Counts(parameters, sum(value.nbytes for value in module.state_dict().values()), flops)


def _product(layer: nn.Linear | nn.Conv2d, *, rows: int) -> int:
    """Return the operations of a layer with `rows` outputs of its full width."""
    return 2 * rows * layer.weight.numel()


def _linears(module: nn.Module, *, rows: int) -> int:
    """Return the operations of all linear layers of a module, each on `rows` rows."""
    return sum(_product(layer, rows=rows) for layer in module.modules() if isinstance(layer, nn.Linear))


def _convolutions(module: nn.Module, *, rows: int) -> int:
    """Return the operations of all convolutions of a module whose stride is 1, on maps of `rows` positions."""
    return sum(_product(layer, rows=rows) for layer in module.modules() if isinstance(layer, nn.Conv2d))


def _attention(*, queries: int, keys: int, width: int) -> int:
    """Return the operations of q kᵀ and of its product with v, over all heads."""
    return 2 * 2 * queries * keys * width

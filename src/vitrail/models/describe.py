"""Cost of a model, without building it: tokens, parameters, operations, memory.

Parameters and operations are those of `counts`. Activations depend on what autograd keeps and what Python still holds, which
no meta device tells; they are counted by the terms of `kept_elements`, `peak_elements` and `training_peak`, which tests hold to
what a CPU does.
"""

# L patches · T prefix tokens · N tokens = T + L · D width · M hidden width of the MLP · h heads · d = D / h

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitrail.models.attention import PLAIN_ATTENTION_MAX_TOKENS
from vitrail.models.counts import count, count_vit_parts, is_uniform, shallow_vit
from vitrail.models.positions import grid_of
from vitrail.models.vit import ViT
from vitrail.settings import ViTConfig, pair
from vitrail.settings.beit import BeitConfig
from vitrail.settings.modern import ModernConfig

_FP32, _BF16 = 4, 2  # bytes
_ALLOCATOR = 1.07
"""Ratio of process memory to tensor memory: gaps between buffers, and the kernels' own (benchmarks/memory.py)."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one model of any family, at its own image size."""

    parameters: int
    flops: int
    """Floating-point operations of the forward pass for one image: matrix products and convolutions; a multiply-add is two."""
    weights_bytes: int
    """Parameters and buffers in fp32, as they are saved."""


@dataclass(frozen=True, kw_only=True)
class Description(Cost):
    """Cost of a ViT, plain or modern, including its tokens and activations."""

    tokens: int
    """Prefix tokens and patches of one image."""
    inference_bytes: int
    """Peak bytes of activations in inference, images included, in fp32."""
    training_bytes: int
    """Bytes of activations kept for the backward pass, images included, in fp32 with fused attention."""
    training_bytes_bf16: int
    """Bytes of the same activations in bf16; about an eighth more where autocast keeps the norms in fp32, as on CUDA."""
    peak: Peak
    """Peak memory of training."""
    checkpointing_peak: Peak
    """Peak memory of training with recomputed blocks (train.checkpointing)."""


@dataclass(frozen=True)
class Peak:
    """Peak memory of a training step, in bytes, beyond the imports.

    Includes weights, gradients and AdamW's two moments in fp32, a batch of images, activations, and the backward pass's
    temporary tensors.

    Counted as on a CPU, where attention in bf16 keeps its weights (h N N) up to `PLAIN_ATTENTION_MAX_TOKENS` tokens. Not
    counted: a running mean (train.ema_decay), which is one more copy of the weights, and the images of the data set.
    """

    fp32: int
    bf16: int
    """Peak under autocast: activations are kept in bf16, with a bf16 copy of the weights."""


def describe_model(config: Any, *, batch_size: int = 1) -> Cost:
    """Count the cost of a model of any family: a `Description` with memory for `batch_size` images if the family has one.

    Raises ValueError for an invalid config or image size.
    """
    describe_family = COUNTED.get(type(config))
    if describe_family is not None:
        return describe_family(config, batch_size)
    parameters, weights, flops = count(config)
    return Cost(parameters=parameters, flops=flops, weights_bytes=weights)


def describe(config: ViTConfig, *, batch_size: int = 1) -> Description:
    """Count the cost of a ViT: memory for `batch_size` images, everything else for one image or for the model.

    Raises ValueError for an invalid config, such as a patch that does not divide the image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    model = shallow_vit(config)
    bare, block = count_vit_parts(model)
    parameters, weights, flops = bare + block * config.depth
    kept = batch_size * kept_elements(model, depth=config.depth)

    def peak(*, checkpointing: bool) -> Peak:
        return Peak(
            *(
                training_peak(
                    model,
                    depth=config.depth,
                    batch_size=batch_size,
                    weights=bare.weights_bytes,
                    block_weights=block.weights_bytes,
                    bf16=bf16,
                    checkpointing=checkpointing,
                )
                for bf16 in (False, True)
            )
        )

    return Description(
        tokens=_tokens(model),
        parameters=parameters,
        flops=flops,
        weights_bytes=weights,
        inference_bytes=_FP32 * batch_size * peak_elements(model, depth=config.depth),
        training_bytes=_FP32 * kept,
        training_bytes_bf16=_BF16 * kept,
        peak=peak(checkpointing=False),
        checkpointing_peak=peak(checkpointing=True),
    )


def describe_modern(config: ModernConfig, *, batch_size: int = 1) -> Description:
    """Count the cost of a modern ViT as `describe` does; where blocks differ, memory is that of blocks like the first."""
    description = describe(config, batch_size=batch_size)
    if is_uniform(config):
        return description
    parameters, weights, flops = count(config)
    return dataclasses.replace(description, parameters=parameters, weights_bytes=weights, flops=flops)


COUNTED: dict[type[Any], Callable[[Any, int], Description]] = {
    ViTConfig: lambda config, batch_size: describe(config, batch_size=batch_size),
    BeitConfig: lambda config, batch_size: describe(config, batch_size=batch_size),
    ModernConfig: lambda config, batch_size: describe_modern(config, batch_size=batch_size),
}
"""Families whose tokens and activations can be counted."""


def kept_elements(model: ViT, *, depth: int) -> int:
    """Return the number of elements of one image that autograd keeps until the backward pass. By part of the model:

    - image: itself; stem "conv": what each convolution, norm and GELU gives
    - a block, for each token: both norms' input and output 4 D; query, key and value 3 h d (qk_norm: normed 2 h d more);
      attention's output h d; GELU's input and output 2 M (SwiGLU: 4 M); LayerScale's inputs 2 D; dropout's masks 2 D
    - its scores, with a bias of pairs of tokens: h N, for no fused kernel has the gradient of a bias
    - last norm: input D, and output D unless only its mean goes on; pool "map": keys and values 2 D

    Left out, as less than a percent: statistics of norms and softmax, and what belongs to one token only.
    """
    patches, tokens = 3 * sum(_stem(model)), _kept_tokens(model)
    scores = model.config.num_heads * tokens if model.pairwise_context else 0
    return _image(model) + patches + tokens * (depth * (_block(model) + scores) + _last(model))


def training_peak(
    model: ViT, *, depth: int, batch_size: int, weights: int, block_weights: int, bf16: bool, checkpointing: bool
) -> int:
    """Return the peak bytes of a training step with AdamW, from the second step on: the maximum of

    - the start of the backward pass, in the last block: kept activations of all blocks, no gradients
    - its end, in the first block: kept activations of this block, gradients of all others
    - its part in the stem, with stem "conv"
    - the optimizer's step: all gradients, no activations

    each with the weights and the two moments. With checkpointing a block keeps only its input, D a token, except for the
    current one. The current block has in flight, for each token, the residual's gradient and that of its branch 2 D, and the
    gradient of GELU's output M (SwiGLU: 2 M); or, later, the gradients of the attention's weights and scores 2 h N if they
    are kept, when the MLP's part is freed. `weights` are the bytes of the model without blocks.
    """
    cfg, tokens, size = model.config, _kept_tokens(model), _BF16 if bf16 else _FP32
    dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
    plain = model.pairwise_context or (bf16 and tokens <= PLAIN_ATTENTION_MAX_TOKENS)
    scores = cfg.num_heads * tokens if plain else 0  # for each token
    branch = (2 if cfg.mlp == "swiglu" else 1) * hidden
    flight = batch_size * size * tokens * max(branch + 2 * dim, 2 * scores - 2 * branch)
    cast = block_weights // 2 if bf16 else 0
    kept = batch_size * size * tokens * (_block(model) + scores) + cast
    waits = batch_size * size * tokens * dim if checkpointing else kept
    last = batch_size * size * tokens * _last(model)
    begin, end = last + batch_size * size * tokens * 2 * dim, 0
    if depth:
        begin = kept + (depth - 1) * waits + last + flight
        end = kept + (depth - 1) * block_weights + hidden * dim * _FP32 + flight + weights
    stem = _stem(model)
    turned = batch_size * size * 3 * sum(stem)
    images = batch_size * _image(model) * (_FP32 + (_BF16 if bf16 else 0))
    gradients = weights + depth * block_weights
    moments = [begin + turned, end + turned, gradients + turned + batch_size * size * 2 * max(stem, default=0)]
    return round(_ALLOCATOR * (3 * gradients + images + max(moments)))


def _block(model: ViT) -> int:
    """Return the elements per token that a block keeps, without attention weights."""
    cfg = model.config
    dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
    mlp = (4 if cfg.mlp == "swiglu" else 2) * hidden
    scale = 0 if cfg.init_values is None else 2 * dim
    dropout = 2 * dim if cfg.proj_drop_rate else 0
    inner = cfg.num_heads * (cfg.head_dim or dim // cfg.num_heads)
    return 4 * dim + (6 if cfg.qk_norm else 4) * inner + mlp + scale + dropout + extra_activations(cfg)


def extra_activations(cfg: ViTConfig) -> int:
    """Return the elements per token that a block keeps beside those of a plain ViT's."""
    return EXTRA_ACTIVATIONS.get(type(cfg), lambda cfg: 0)(cfg)


def _of_modern(cfg: ModernConfig) -> int:
    """Count turned queries and keys beside a fused projection's, inputs of the norms inside, RMSNorm's, and other blocks'.

    Of a differential attention values are repeated for both maps, the difference and its norm are kept, and so are scores:
    the fused kernels take no values that are wider than queries.
    """
    inner, hidden = cfg.num_heads * cfg.head_width, round(cfg.embed_dim * cfg.mlp_ratio)
    turned, rms, scale = cfg.rope != "none" and cfg.qkv == "fused", cfg.norm == "rms", cfg.init_values is not None
    extra = 2 * inner * turned + inner * cfg.scale_attn_inner + hidden * cfg.scale_mlp + 2 * cfg.embed_dim * rms
    if cfg.block == "pair":  # a second attention and MLP, each with norm and scale
        return 2 * extra + (4 + 2 * scale) * cfg.embed_dim + (6 if cfg.qk_norm else 4) * inner + 2 * hidden
    if cfg.attention == "differential":
        patches = math.prod(grid_of(pair(cfg.img_size), pair(cfg.patch_size)))
        return extra + 5 * inner + 2 * cfg.num_heads * (cfg.class_token + cfg.reg_tokens + patches)
    if cfg.block == "parallel":  # one norm and one scale; without biases of queries, the MLP's is added by itself
        extra -= (2 + rms + scale) * cfg.embed_dim
        return extra + hidden * (not cfg.qkv_bias) + 4 * inner * (rms and cfg.qk_norm)
    return extra


EXTRA_ACTIVATIONS: dict[type[Any], Callable[[Any], int]] = {ModernConfig: _of_modern}
"""By config: elements per token of a block that a plain ViT's does not keep."""


def _last(model: ViT) -> int:
    """Return the elements per token that the last norm and the pooling keep."""
    return {"cls": 2, "avg": 1, "cls+avg": 1, "map": 4}[model.config.pool] * model.config.embed_dim


def _kept_tokens(model: ViT) -> int:
    """Return the number of tokens of one image in the blocks during training."""
    patches, rate = model.grid[0] * model.grid[1], model.config.patch_drop_rate
    return model.prefix_tokens + (max(1, round(patches * (1 - rate))) if rate else patches)


def peak_elements(model: ViT, *, depth: int) -> int:
    """Return the peak number of live elements of one image in inference, with fused attention: the maximum of

    - stem "conv": the image, and a norm's output beside GELU's
    - embedding: the image, and 2 D a token, while positions are added
    - attention: 3 D and 4 h d a token, while its output is projected (qk_norm: 6 h d)
    - MLP: 3 D and 2 M a token, while GELU reads one and writes the other (SwiGLU: 4 M)
    """
    cfg = model.config
    dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
    moments = [_image(model) + 2 * dim * _tokens(model)]
    moments += [_image(model) + 2 * elements for elements in _stem(model)]
    if depth:
        heads = cfg.num_heads * (cfg.head_dim or dim // cfg.num_heads)
        attention, mlp = (6 if cfg.qk_norm else 4) * heads, (4 if cfg.mlp == "swiglu" else 2) * hidden
        inner = 3 * dim + max(attention + extra_activations(cfg), mlp)
        moments.append(_image(model) + inner * _tokens(model))
    return max(moments)


def _tokens(model: ViT) -> int:
    return model.prefix_tokens + model.grid[0] * model.grid[1]


def _image(model: ViT) -> int:
    height, width = pair(model.config.img_size)
    return model.config.in_channels * height * width


def _stem(model: ViT) -> list[int]:
    """Return the number of output elements of each convolution of the stem."""
    sides = torch.tensor(pair(model.config.img_size))
    elements = []
    for layer in model.patch_embed.stem.modules():
        if isinstance(layer, nn.Conv2d):
            sides = (sides + 1) // 2
            elements.append(layer.out_channels * int(sides.prod()))
    return elements

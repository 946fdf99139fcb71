"""What a model costs, without building it: tokens, parameters, operations, memory.

Parameters and operations are counted on the real model, on torch's meta device, with no block and with one: the blocks are
equal, so that gives every depth. Activations depend on what autograd keeps and what Python still holds, which no meta
device tells; they are counted by the terms of `kept_elements` and `peak_elements`, which tests hold to what a CPU does.
"""

# L patches · T prefix tokens · N tokens = T + L · D width · M hidden width of the MLP · h heads

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.config import ViTConfig, pair
from vitrail.models.baseline import Baseline, BaselineConfig, check_baseline, on_meta
from vitrail.models.vit import ViT

_FP32, _BF16 = 4, 2  # bytes


@dataclass(frozen=True)
class Description:
    """The cost of one model, for images of its own size."""

    tokens: int
    """Prefix tokens and patches of one image."""
    parameters: int
    flops: int
    """Floating-point operations of the forward pass for one image: matrix products and convolutions; a multiply-add is two."""
    weights_bytes: int
    """Parameters and buffers in fp32, as they are saved."""
    inference_bytes: int
    """Most memory that activations take at one time in inference, images included, in fp32."""
    training_bytes: int
    """Activations that the backward pass needs, images included, in fp32 with fused attention."""
    training_bytes_bf16: int
    """The same in bf16. Where autocast keeps the norms in fp32, as on CUDA, it is about an eighth more."""


def describe(config: ViTConfig, *, batch_size: int = 1) -> Description:
    """Counts what a model costs; memory is for `batch_size` images, everything else for one or for the model.

    Raises ValueError for a config that makes no model, such as a patch that does not divide the image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    bare, one = (_count(dataclasses.replace(config, depth=depth)) for depth in (0, 1))
    parameters, weights, flops = (base + config.depth * (more - base) for base, more in zip(bare, one, strict=True))
    with torch.device("meta"):
        model = ViT(dataclasses.replace(config, depth=0))
    kept = batch_size * kept_elements(model, depth=config.depth)
    return Description(
        tokens=_tokens(model),
        parameters=parameters,
        flops=flops,
        weights_bytes=weights,
        inference_bytes=_FP32 * batch_size * peak_elements(model, depth=config.depth),
        training_bytes=_FP32 * kept,
        training_bytes_bf16=_BF16 * kept,
    )


@dataclass(frozen=True)
class BaselineDescription:
    """What can be counted of another library's model; what its activations take depends on its code."""

    parameters: int
    flops: int
    """As of a ViT: matrix products and convolutions of the forward pass for one image."""
    weights_bytes: int
    """Parameters and buffers in fp32, as they are saved."""


def describe_baseline(config: BaselineConfig) -> BaselineDescription:
    """Counts what a baseline costs. Raises ValueError for what can't be built, and for images that it can't take."""
    check_baseline(config)
    parameters, weights, flops = _counted(on_meta(config))
    return BaselineDescription(parameters=parameters, flops=flops, weights_bytes=weights)


def _count(config: ViTConfig) -> tuple[int, int, int]:
    with torch.device("meta"):
        return _counted(ViT(config).eval())


def _counted(model: ViT | Baseline) -> tuple[int, int, int]:
    """Parameters, bytes of the state dict, and FLOPs for one image, of a model on the meta device."""
    image = torch.empty(1, model.config.in_channels, *pair(model.config.img_size), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters, sum(value.nbytes for value in model.state_dict().values()), counter.get_total_flops()


def kept_elements(model: ViT, *, depth: int) -> int:
    """Numbers that autograd keeps of one image until the backward pass. By part of the model:

    - image: itself; stem "conv": what each convolution, norm and GELU gives
    - a block, for each token: both norms' input and output 4 D; query, key and value 3 h d (qk_norm: normed 2 h d more);
      attention's output h d; GELU's input and output 2 M (SwiGLU: 4 M); LayerScale's inputs 2 D; dropout's masks 2 D
    - last norm: input D, and output D unless only its mean goes on; pool "map": keys and values 2 D

    Left out, as less than a percent: statistics of norms and softmax, and what belongs to one token only.
    """
    cfg = model.config
    dim, hidden = cfg.embed_dim, round(cfg.embed_dim * cfg.mlp_ratio)
    mlp = (4 if cfg.mlp == "swiglu" else 2) * hidden
    scale = 0 if cfg.init_values is None else 2 * dim
    dropout = 2 * dim if cfg.proj_drop_rate else 0
    inner = cfg.num_heads * (cfg.head_dim or dim // cfg.num_heads)
    block = 4 * dim + (6 if cfg.qk_norm else 4) * inner + mlp + scale + dropout
    last = {"cls": 2, "avg": 1, "cls+avg": 1, "map": 4}[cfg.pool] * dim
    patches = model.grid[0] * model.grid[1]
    if cfg.patch_drop_rate:
        patches = max(1, round(patches * (1 - cfg.patch_drop_rate)))
    return _image(model) + 3 * sum(_stem(model)) + (model.prefix_tokens + patches) * (depth * block + last)


def peak_elements(model: ViT, *, depth: int) -> int:
    """Numbers of one image that are alive at the worst moment of inference, fused attention given: the greatest of

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
        inner = 3 * dim + max((6 if cfg.qk_norm else 4) * heads, (4 if cfg.mlp == "swiglu" else 2) * hidden)
        moments.append(_image(model) + inner * _tokens(model))
    return max(moments)


def _tokens(model: ViT) -> int:
    return model.prefix_tokens + model.grid[0] * model.grid[1]


def _image(model: ViT) -> int:
    height, width = pair(model.config.img_size)
    return model.config.in_channels * height * width


def _stem(model: ViT) -> list[int]:
    """Elements that each convolution of the stem gives."""
    sides = torch.tensor(pair(model.config.img_size))
    elements = []
    for layer in model.patch_embed.stem.modules():
        if isinstance(layer, nn.Conv2d):
            sides = (sides + 1) // 2
            elements.append(layer.out_channels * int(sides.prod()))
    return elements

"""Sensitivity of layers to int8: the error of the logits when one layer alone computes with rounded weights and inputs."""

# B batch · C channels · H W image · O I outputs and inputs of a layer

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

LEVELS = 255
"""Steps of an unsigned number of 8 bits."""


def rounded_weight(weight: Float[Tensor, "O ..."]) -> Float[Tensor, "O ..."]:
    """Round to int8, symmetric, with a scale for each output."""
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / (LEVELS // 2)
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round() * scale


def rounded_input(x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B I"]:
    """Round to 8 bits between the smallest and the largest value."""
    low, high = x.aminmax()
    scale = ((high - low) / LEVELS).clamp(min=1e-12)
    return ((x - low) / scale).round() * scale + low


@contextlib.contextmanager
def one_rounded(layer: nn.Module) -> Iterator[None]:
    """Let one linear layer or convolution compute as in int8."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    kept, hook = weight.data, layer.register_forward_pre_hook(lambda _, inputs: (rounded_input(inputs[0]), *inputs[1:]))
    weight.data = rounded_weight(kept)
    try:
        yield
    finally:
        weight.data = kept
        hook.remove()


@torch.no_grad()
def layer_errors(
    model: nn.Module, layers: Iterable[tuple[str, nn.Module]], images: Float[Tensor, "B C H W"]
) -> dict[str, float]:
    """Return the mean error of the logits for each layer by its name, the most sensitive first."""
    reference, errors = model(images), dict[str, float]()
    for name, layer in layers:
        with one_rounded(layer):
            errors[name] = float((model(images) - reference).abs().mean())
    return dict(sorted(errors.items(), key=lambda item: -item[1]))

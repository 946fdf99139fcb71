"""Tiny models of other libraries with random weights: what a checkpoint of them holds, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor

from vitrail.models import ViT

DIM, HEADS, DEPTH, CLASSES, SIDE, PATCH = 48, 3, 2, 7, 16, 4
TINY = {"embed_dim": DIM, "num_heads": HEADS, "depth": DEPTH, "num_classes": CLASSES}


@dataclass(frozen=True)
class Peer:
    """A checkpoint of another library, and what its own code computes with it."""

    origin: str
    """What a receipt calls it."""
    state: Mapping[str, Any]
    images: Tensor
    expected: Mapping[str, Tensor]
    """By the part of our outputs that has to equal it."""
    answers: Mapping[str, Any] = field(default_factory=dict)
    """The fields that a bare state dict leaves open, with their answers."""
    has: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the config that no output of a random model shows."""
    dropped: tuple[str, ...] | None = ()
    """What of it has no place in a ViT; None for more than is worth a list."""
    model: Any = None
    """The live model that the state is of."""


def randomised(model: Any) -> Any:
    """Every parameter random, those that start as zero or one as well: else a lost bias or norm would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-2, 2)  # timm leaves some as memory happens to be
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def some_images(height: int = SIDE, width: int | None = None, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width or height, generator=torch.Generator().manual_seed(2))


def random_like(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.1


def timm_vit(name: str = "vit_small_patch16_224", *, side: int = 64, **fields: Any) -> Any:
    """An architecture of timm by its name, which decides its parts, at a tiny width."""
    torch.manual_seed(0)
    return randomised(timm.create_model(name, **{"img_size": side, **TINY, **fields}))


@torch.no_grad()
def of_timm(model: Any, images: Tensor) -> dict[str, Tensor]:
    """What a model of timm computes, by the parts of our outputs."""
    tokens = model.forward_features(images)
    parts = {"logits": model(images), "tokens": tokens}
    return parts if hasattr(model, "head_dist") else {**parts, "embedding": model.forward_head(tokens, pre_logits=True)}


@torch.no_grad()
def same(ours: ViT, images: Tensor, expected: Mapping[str, Tensor]) -> None:
    """Ours gives what is expected, to 1e-5 in fp32."""
    assert not ours.training
    outputs = ours.outputs(images)
    got = {"logits": ours(images), "embedding": outputs.embedding, "tokens": outputs.tokens}
    for part, value in expected.items():
        assert value.std() > 0.01, "the reference says nothing"
        assert got[part].shape == value.shape
        assert (got[part] - value).abs().max() <= 1e-5 * max(1.0, value.abs().max().item()), part


def renamed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """With a prefix before every name."""
    return {prefix + name: value for name, value in state.items()}

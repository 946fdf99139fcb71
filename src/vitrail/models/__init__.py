"""Images to tokens to logits."""

from __future__ import annotations

from typing import Any

from vitrail.config import ViTConfig, parse_name
from vitrail.models.vit import Outputs, ViT, configured

__all__ = ["Outputs", "ViT", "create_model"]


def create_model(name: str, **fields: Any) -> ViT:
    """A model with random weights: a size and a patch, and any field of ViTConfig over it.

    `create_model("B/16", num_classes=10)`, `create_model("vit_base_patch16_224")`. Raises ValueError for a name or a field
    that does not exist.
    """
    return ViT(configured(ViTConfig(**parse_name(name)), fields))

"""Images to tokens to logits."""

from __future__ import annotations

from typing import Any

import torch

from vitrail.config import BASELINE_FIELDS, ModelConfig, ViTConfig, configured, is_baseline, parse_name
from vitrail.models.baseline import Baseline, BaselineConfig, check_baseline, create_baseline, on_meta
from vitrail.models.vit import Outputs, ViT

__all__ = [
    "Baseline",
    "Outputs",
    "ViT",
    "baseline_config",
    "baseline_fields",
    "build_model",
    "check_model",
    "create_baseline",
    "create_model",
    "meta_model",
]


def create_model(name: str, **fields: Any) -> ViT:
    """A model with random weights: a size and a patch, and any field of ViTConfig over it.

    `create_model("B/16", num_classes=10)`, `create_model("vit_base_patch16_224")`. Raises ValueError for a name or a field
    that does not exist.
    """
    if is_baseline(name):
        raise ValueError(f'"{name}" is no ViT; vitrail.models.create_baseline makes it')
    return ViT(configured(ViTConfig(**parse_name(name)), fields))


def build_model(cfg: ModelConfig) -> ViT | Baseline:
    """The model of a run's settings, with random weights."""
    return create_baseline(cfg.name, **baseline_fields(cfg)) if is_baseline(cfg.name) else ViT(cfg.vit())


def check_model(cfg: ModelConfig) -> None:
    """Raises ValueError, in one line, for settings that make no model. Nothing is computed, and no memory is taken."""
    if is_baseline(cfg.name):
        check_baseline(baseline_config(cfg))
    else:
        meta_model(cfg)


def meta_model(cfg: ModelConfig) -> ViT | Baseline:
    """The model of a run's settings without memory for its weights: its names and shapes can be looked at."""
    if is_baseline(cfg.name):
        return on_meta(baseline_config(cfg))
    with torch.device("meta"):
        return ViT(cfg.vit())


def baseline_config(cfg: ModelConfig) -> BaselineConfig:
    """What of a run's settings a baseline is made of."""
    return BaselineConfig(name=cfg.name, **baseline_fields(cfg))


def baseline_fields(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of a run's settings that a baseline takes, beside its name and the weights that it starts from."""
    return {name: getattr(cfg, name) for name in BASELINE_FIELDS if name not in ("name", "weights")}

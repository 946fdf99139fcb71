"""The families of backbones: which class a config builds. `settings.families.FAMILIES` has their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vitrail.models.backbone import Backbone
from vitrail.models.baseline import build_baseline, check_baseline, create_baseline
from vitrail.models.swin import Swin
from vitrail.models.vit import ViT
from vitrail.settings import ModelSection, ViTConfig, configured
from vitrail.settings.baseline import BaselineConfig
from vitrail.settings.families import family_of, parse_name
from vitrail.settings.swin import SwinConfig


@dataclass(frozen=True)
class Builder:
    """How a family's models are made."""

    build: Callable[[Any], Backbone]
    """The model of a config, with random weights."""
    check: Callable[[Any], None] | None = None
    """Raises ValueError for a config that makes no model, without memory for its weights; None: `build` on the meta device."""
    create: Callable[..., Backbone] | None = None
    """The model of a name and fields, where more follows from a name than the family's config says."""


BUILDERS: dict[type[Any], Builder] = {
    ViTConfig: Builder(ViT),
    SwinConfig: Builder(Swin),
    BaselineConfig: Builder(build_baseline, check_baseline, create_baseline),  # size and classes of the published weights
}


def create_model(name: str, **fields: Any) -> Backbone:
    """Return a model with random weights: the shape that a name stands for, and any field of its family's config over it.

    `create_model("B/16", num_classes=10)`, `create_model("vit_base_patch16_224")`, `create_model("swin_t", img_size=256)`.
    Raises ValueError for a name or a field that does not exist.
    """
    family = family_of(name)
    create = BUILDERS[family.config].create
    if create is not None:
        return create(name, **fields)
    return build(configured(family.config(**parse_name(name)), fields))


def build(config: Any) -> Backbone:
    """The model of a family's config, with random weights."""
    return BUILDERS[type(config)].build(config)


def build_on_meta(config: Any) -> Backbone:
    """The model of a config without memory for its weights: its names, shapes and stages can be looked at."""
    try:
        with torch.device("meta"):
            return build(config)
    except NotImplementedError:  # torchvision's RegNet computes its widths with tensors
        return build(config).to("meta")


def build_model(section: ModelSection) -> Backbone:
    """The model of a run's settings, with random weights."""
    return build(section.shape())


def meta_model(section: ModelSection) -> Backbone:
    """The model of a run's settings without memory for its weights."""
    return build_on_meta(section.shape())


def check_model(section: ModelSection) -> None:
    """Raise ValueError, in one line, for settings that make no model. Nothing is computed, and no memory is taken."""
    check_config(section.shape())


def check_config(config: Any) -> None:
    """Raise ValueError for a config that makes no model."""
    check = BUILDERS[type(config)].check
    if check is None:
        build_on_meta(config)
    else:
        check(config)

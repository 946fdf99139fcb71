"""Builders of the backbone families, by config class. `settings.families.FAMILIES` has the families' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitrail.models.backbone import Backbone, on_meta
from vitrail.models.baseline import build_baseline, check_baseline, create_baseline
from vitrail.models.beit import Beit
from vitrail.models.cait import Cait
from vitrail.models.cvt import Cvt
from vitrail.models.hybrid import Hybrid
from vitrail.models.modern import ModernViT
from vitrail.models.swin import Swin
from vitrail.models.swin_v2 import SwinV2
from vitrail.models.swin_v2_cr import SwinV2Cr
from vitrail.models.vit import ViT
from vitrail.models.vitdet import VitDet
from vitrail.settings import ModelSection, ViTConfig, configured
from vitrail.settings.baseline import BaselineConfig
from vitrail.settings.beit import BeitConfig
from vitrail.settings.cait import CaitConfig
from vitrail.settings.cvt import CvtConfig
from vitrail.settings.families import family_of, parse_name
from vitrail.settings.hybrid import HybridConfig
from vitrail.settings.modern import ModernConfig
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.settings.swin_v2_cr import SwinV2CrConfig
from vitrail.settings.vitdet import VitDetConfig


@dataclass(frozen=True)
class BackboneBuilder:
    """Functions that build and check the models of a family."""

    build: Callable[[Any], Backbone]
    """Build the model of a config with random weights."""
    check: Callable[[Any], None] | None = None
    """Raise ValueError for an invalid config, without memory for weights; None: `build` on the meta device."""
    create: Callable[..., Backbone] | None = None
    """Create the model of a name and fields, if a name decides more than the family's config holds."""
    one_of_each: Callable[[Any], tuple[Any, list[int]]] | None = None
    """Return the config of a model with one block of each kind, and the number of blocks of each; None: all of them."""


BUILDERS: dict[type[Any], BackboneBuilder] = {
    ViTConfig: BackboneBuilder(ViT, one_of_each=ViT.one_of_each),
    SwinConfig: BackboneBuilder(Swin, one_of_each=Swin.one_of_each),
    CaitConfig: BackboneBuilder(Cait, one_of_each=Cait.one_of_each),
    CvtConfig: BackboneBuilder(Cvt, one_of_each=Cvt.one_of_each),
    ModernConfig: BackboneBuilder(ModernViT, one_of_each=ModernViT.one_of_each),
    SwinV2Config: BackboneBuilder(SwinV2, one_of_each=SwinV2.one_of_each),
    SwinV2CrConfig: BackboneBuilder(SwinV2Cr, one_of_each=SwinV2Cr.one_of_each),
    BeitConfig: BackboneBuilder(Beit, one_of_each=Beit.one_of_each),
    VitDetConfig: BackboneBuilder(VitDet, one_of_each=VitDet.one_of_each),
    HybridConfig: BackboneBuilder(Hybrid, one_of_each=Hybrid.one_of_each),
    BaselineConfig: BackboneBuilder(build_baseline, check_baseline, create_baseline),  # sizes of published weights
}


def create_model(name: str, **fields: Any) -> Backbone:
    """Create a model with random weights from a name; fields override those that the name decides.

    `create_model("B/16", num_classes=10)`, `create_model("vit_base_patch16_224")`, `create_model("swin_t", img_size=256)`.
    Raises ValueError for a name or a field that does not exist.
    """
    family = family_of(name)
    create = BUILDERS[family.config].create
    if create is not None:
        return create(name, **fields)
    return build(configured(family.config(**parse_name(name)), fields))


def build(config: Any) -> Backbone:
    """Build the model of a family's config with random weights."""
    return BUILDERS[type(config)].build(config)


def build_on_meta(config: Any) -> Backbone:
    """Build the model of a config on the meta device, to inspect names, shapes and stages without memory for weights."""
    return on_meta(lambda: build(config))


def one_of_each(config: Any) -> tuple[Backbone, list[int]]:
    """Build a model on the meta device with one block of each kind, and return how many blocks each of them stands for.

    Raises ValueError for an invalid config.
    """
    shallow = BUILDERS[type(config)].one_of_each
    if shallow is not None:
        config, counts = shallow(config)
        return build_on_meta(config), counts
    check_config(config)
    model = build_on_meta(config)
    return model, [1] * len(model.blocks_in_order())


def build_model(section: ModelSection) -> Backbone:
    """Build the model of a run's settings with random weights."""
    return build(section.shape())


def meta_model(section: ModelSection) -> Backbone:
    """Build the model of a run's settings on the meta device, without memory for weights."""
    return build_on_meta(section.shape())


def check_model(section: ModelSection) -> None:
    """Raise ValueError, in one line, for settings of an invalid model, without computing or allocating anything."""
    check_config(section.shape())


def check_config(config: Any) -> None:
    """Raise ValueError for an invalid config."""
    check = BUILDERS[type(config)].check
    if check is None:
        build_on_meta(config)
    else:
        check(config)

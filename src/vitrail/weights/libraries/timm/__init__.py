"""timm: one file for each family that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitrail.settings import Preprocessing, ViTConfig
from vitrail.settings.baseline import BaselineConfig
from vitrail.settings.beit import BeitConfig
from vitrail.settings.cait import CaitConfig
from vitrail.settings.hybrid import HybridConfig
from vitrail.settings.modern import ModernConfig
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.settings.swin_v2_cr import SwinV2CrConfig
from vitrail.settings.vitdet import VitDetConfig
from vitrail.weights.libraries.timm.baseline import baseline_config
from vitrail.weights.libraries.timm.beit import BEIT_LAYOUTS, beit_config, beit_plan
from vitrail.weights.libraries.timm.cait import CAIT_LAYOUT, cait_config, cait_plan
from vitrail.weights.libraries.timm.card import config_transform, labels
from vitrail.weights.libraries.timm.hybrid import HYBRID_LAYOUTS, hybrid_config, hybrid_plan
from vitrail.weights.libraries.timm.modern import MODERN_LAYOUTS, modern_config, modern_plan, modern_state
from vitrail.weights.libraries.timm.naflex import NAFLEX_LAYOUTS
from vitrail.weights.libraries.timm.swin import SWIN_LAYOUT, swin_config, swin_plan
from vitrail.weights.libraries.timm.swin_v2 import SWIN_V2_LAYOUT, swin_v2_config, swin_v2_plan
from vitrail.weights.libraries.timm.swin_v2_cr import SWIN_V2_CR_LAYOUTS, swin_v2_cr_config, swin_v2_cr_plan, swin_v2_cr_state
from vitrail.weights.libraries.timm.vit import (
    EVA_LAYOUT,
    GAMMA_LAYOUT,
    VIT_LAYOUT,
    config_fields,
    plan,
    timm_config,
    timm_state,
)
from vitrail.weights.libraries.timm.vitdet import VITDET_LAYOUT, vitdet_config, vitdet_plan
from vitrail.weights.library import Library, Writer
from vitrail.weights.targets import State

RunForm = tuple[dict[str, Any], State, Any]
RunFormer = Callable[[Any, State, Preprocessing, str | None], RunForm]


def _same_tensors(config: Callable[..., dict[str, Any]]) -> RunFormer:
    """Return the form of a family whose names are timm's, by the function of its config.json."""
    return lambda model, state, images, licence: (config(model.config, images, licence=licence), state, model.config)


RUN_FORMS: dict[type[Any], RunFormer] = {
    ViTConfig: lambda model, state, images, licence: (
        timm_config(model.config, images, licence=licence),
        *timm_state(state, model.config),
    ),
    SwinConfig: _same_tensors(swin_config),
    SwinV2Config: _same_tensors(swin_v2_config),
    SwinV2CrConfig: lambda model, state, images, licence: (
        swin_v2_cr_config(model.config, images, licence=licence),
        swin_v2_cr_state(state),
        model.config,
    ),
    CaitConfig: _same_tensors(cait_config),
    ModernConfig: lambda model, state, images, licence: (
        modern_config(model.config, images, licence=licence),
        *modern_state(state, model.config),
    ),
    BeitConfig: _same_tensors(beit_config),
    VitDetConfig: _same_tensors(vitdet_config),
    HybridConfig: lambda model, state, images, licence: (
        hybrid_config(model, images, licence=licence),
        *timm_state(state, model.config),
    ),
    BaselineConfig: lambda model, state, images, licence: (baseline_config(model, images), state, model.config),
}
"""By a family's config: keys of a run's config.json for timm, tensors and config in its form. May raise Inexpressible."""

TIMM = Library(
    layouts=(VIT_LAYOUT, GAMMA_LAYOUT, EVA_LAYOUT),
    family_layouts=(
        SWIN_LAYOUT,
        SWIN_V2_LAYOUT,
        *SWIN_V2_CR_LAYOUTS,
        CAIT_LAYOUT,
        *BEIT_LAYOUTS,
        VITDET_LAYOUT,
        *HYBRID_LAYOUTS,
        *MODERN_LAYOUTS,
        *NAFLEX_LAYOUTS,
    ),
    fields=config_fields,
    config_transform=config_transform,
    labels=labels,
    writer=Writer(
        "timm",
        {
            ViTConfig: plan,
            SwinConfig: swin_plan,
            SwinV2Config: swin_v2_plan,
            SwinV2CrConfig: swin_v2_cr_plan,
            CaitConfig: cait_plan,
            BeitConfig: beit_plan,
            VitDetConfig: vitdet_plan,
            HybridConfig: hybrid_plan,
            ModernConfig: modern_plan,
        },
    ),
)

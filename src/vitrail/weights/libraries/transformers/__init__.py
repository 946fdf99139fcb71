"""Hugging Face transformers: ViT, MAE, MSN, DeiT, DINOv2, BEiT, I-JEPA, and the vision towers of CLIP and SigLIP."""

from __future__ import annotations

from vitrail.settings import ViTConfig
from vitrail.settings.beit import BeitConfig
from vitrail.settings.cvt import CvtConfig
from vitrail.settings.modern import ModernConfig
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.settings.vitdet import VitDetConfig
from vitrail.weights.eval_transform import HALF, DefaultTransform
from vitrail.weights.libraries.transformers.beit import BEIT_LAYOUTS, beit_plan
from vitrail.weights.libraries.transformers.config import config_assumptions, config_fields, labels, processor_transform
from vitrail.weights.libraries.transformers.cvt import CVT_ENCODER_LAYOUT, CVT_LAYOUT, cvt_plan
from vitrail.weights.libraries.transformers.modern import MODERN_LAYOUTS
from vitrail.weights.libraries.transformers.modern_write import modern_plan
from vitrail.weights.libraries.transformers.names import CLIP_LAYOUT, DINOV2_LAYOUT, SIGLIP_LAYOUT, VIT_LAYOUT
from vitrail.weights.libraries.transformers.swin import DONUT_LAYOUTS, OLD_SWIN_LAYOUT, SWIN_LAYOUT, swin_plan
from vitrail.weights.libraries.transformers.swin_v2 import SWIN_V2_LAYOUT, swin_v2_plan
from vitrail.weights.libraries.transformers.towers import TOWER_LAYOUTS
from vitrail.weights.libraries.transformers.vitdet import VITDET_LAYOUTS, vitdet_plan
from vitrail.weights.libraries.transformers.write import plan
from vitrail.weights.library import Library, Writer

TRANSFORMERS = Library(
    layouts=(VIT_LAYOUT, DINOV2_LAYOUT, SIGLIP_LAYOUT, CLIP_LAYOUT),
    family_layouts=(
        *DONUT_LAYOUTS,
        SWIN_LAYOUT,
        OLD_SWIN_LAYOUT,
        SWIN_V2_LAYOUT,
        CVT_ENCODER_LAYOUT,
        CVT_LAYOUT,
        *BEIT_LAYOUTS,
        *VITDET_LAYOUTS,
        *TOWER_LAYOUTS,
        *MODERN_LAYOUTS,
    ),
    fields=config_fields,
    config_assumptions=config_assumptions,
    processor_transform=processor_transform,
    default_transforms=(
        DefaultTransform("siglip", "SigLIP", HALF, 1.0, "squash", "bicubic"),  # its SiglipImageProcessor
        DefaultTransform("radio", "C-RADIO, which normalises by itself", ((0.0,) * 3, (1.0,) * 3), 1.0, "squash", "bicubic"),
    ),
    labels=labels,
    writer=Writer(
        "hf",
        {
            ViTConfig: plan,
            SwinConfig: swin_plan,
            SwinV2Config: swin_v2_plan,
            CvtConfig: cvt_plan,
            BeitConfig: beit_plan,
            VitDetConfig: vitdet_plan,
            ModernConfig: modern_plan,
        },
    ),
)

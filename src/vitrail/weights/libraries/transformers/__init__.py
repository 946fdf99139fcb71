"""Hugging Face transformers: ViT, MAE, MSN, DeiT, DINOv2, BEiT, I-JEPA, and the vision towers of CLIP and SigLIP."""

from __future__ import annotations

from vitrail.settings import ViTConfig
from vitrail.settings.swin import SwinConfig
from vitrail.weights.eval_transform import HALF, DefaultTransform
from vitrail.weights.libraries.transformers.config import config_assumptions, config_fields, labels, processor_transform
from vitrail.weights.libraries.transformers.names import CLIP_LAYOUT, DINOV2_LAYOUT, SIGLIP_LAYOUT, SWIN_LAYOUTS, VIT_LAYOUT
from vitrail.weights.libraries.transformers.write import plan, swin_plan
from vitrail.weights.library import Library, Writer

TRANSFORMERS = Library(
    layouts=(VIT_LAYOUT, DINOV2_LAYOUT, SIGLIP_LAYOUT, CLIP_LAYOUT),
    swin_layouts=SWIN_LAYOUTS,
    fields=config_fields,
    config_assumptions=config_assumptions,
    processor_transform=processor_transform,
    default_transforms=(DefaultTransform("siglip", "SigLIP", HALF, 1.0, "squash", "bicubic"),),  # its SiglipImageProcessor
    labels=labels,
    writer=Writer("hf", {ViTConfig: plan, SwinConfig: swin_plan}),
)

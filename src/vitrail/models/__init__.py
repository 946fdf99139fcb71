"""Backbones: images to features and logits."""

from vitrail.models.baseline import Baseline, create_baseline
from vitrail.models.beit import Beit
from vitrail.models.cait import Cait
from vitrail.models.cvt import Cvt
from vitrail.models.families import build, build_model, build_on_meta, check_model, create_model, meta_model
from vitrail.models.hybrid import Hybrid
from vitrail.models.swin import Swin
from vitrail.models.swin_v2 import SwinV2
from vitrail.models.swin_v2_cr import SwinV2Cr
from vitrail.models.vit import Outputs, ViT
from vitrail.models.vitdet import VitDet

__all__ = [
    "Baseline",
    "Beit",
    "Cait",
    "Cvt",
    "Hybrid",
    "Outputs",
    "Swin",
    "SwinV2",
    "SwinV2Cr",
    "ViT",
    "VitDet",
    "build",
    "build_model",
    "build_on_meta",
    "check_model",
    "create_baseline",
    "create_model",
    "meta_model",
]

"""Tiny models of every family, with weights that every part of the model shows in, for the tests of exports."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vitrail.models import create_model
from vitrail.models.backbone import Backbone
from vitrail.models.card import Calibration
from vitrail.settings import Preprocessing, pair

SHAPE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (1, 2),
    "window_size": 4,
}
ROTARY: dict[str, Any] = {**SHAPE, "embed_dim": 32}
ANY_SIZE: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("Ti/16", SHAPE),
    "vit with registers and a pool": (
        "Ti/16",
        {**SHAPE, "pool": "map", "class_token": False, "mlp": "swiglu", "qk_norm": True, "reg_tokens": 2},
    ),
    "vit with a stem": ("Ti/16", {**SHAPE, "patch_size": 16, "stem": "conv", "pos_embed": "sincos2d"}),
    "vit with a distillation token": ("Ti/16", {**SHAPE, "dist_token": True}),
    "dinov3": ("dinov3_s16", ROTARY),
    "eva02": ("eva02_t14", ROTARY),
    "perception encoder": ("pe_core_t16", ROTARY),
    "aimv2": ("aimv2_l14", ROTARY),
    "vjepa2": ("vjepa2_l16", {**ROTARY, "embed_dim": 48}),
    "rope": ("rope_s16", ROTARY),
}
ONE_SIZE: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_t", SWIN),
    "swin v2": ("swinv2_t", SWIN),
    "swin v2 cr": ("swinv2_cr_t", SWIN),
    "cait": ("cait_xxs24", SHAPE),
    "cvt": ("cvt_13", {"img_size": 32, "embed_dims": (4, 6, 8), "depths": (1, 1, 2), "num_heads": (1, 3, 2)}),
    "beit": ("beit_b16", {**SHAPE, "relative_bias": "both"}),
    "hybrid": ("R+Ti/16", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "vitdet": ("vitdet_b16", {**SHAPE, "img_size": 64, "depth": 4, "window_size": 4}),
    "torchvision": ("torchvision:resnet18", {"img_size": 32}),
    "timm": ("timm:test_vit", {"img_size": 160}),
}
MODELS = ANY_SIZE | ONE_SIZE


def make(name: str, *, classes: int = 5, **fields: Any) -> Backbone:
    """Build a model of `MODELS` in evaluation mode, with a card."""
    torch.manual_seed(0)
    known, shape = MODELS[name]
    model = create_model(known, num_classes=classes, **{**shape, **fields}).eval()
    for value in model.parameters():
        if value.ndim and not value.any():  # heads and biases of zeros would hide what comes before
            nn.init.normal_(value, std=0.3)
    channels = model.config.in_channels
    model.preprocessing = Preprocessing(
        img_size=pair(model.config.img_size),
        in_channels=channels,
        mean=(0.5, 0.4, 0.3)[:channels],
        std=(0.2, 0.3, 0.25)[:channels],
        crop_pct=0.9,
    )
    model.classes = tuple(f"kind {k}" for k in range(classes))
    return model


def calibrated(model: Backbone) -> Backbone:
    """Give a model a temperature, conformal scores and an outlier threshold."""
    from dataclasses import replace

    known = Calibration(images=8, temperature=2.0, conformal_scores=(0.1, 0.3, 0.5, 0.7), outlier_energy=-1.0)
    model.card = replace(model.card, calibration=known)
    return model

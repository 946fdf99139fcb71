"""Description of a served model, as `/v1/model` gives it."""

from __future__ import annotations

from typing import Any

from vitrail.explain.inputs import layer_count, model_name, offers_of
from vitrail.explain.table import METHODS, usable
from vitrail.serve.models import ServedModel


def describe(served: ServedModel) -> dict[str, Any]:
    """Return a model's card and shape, and the explanation methods that it can run."""
    model, preprocessing, card = served.model, served.predictor.preprocessing, served.predictor.calibration
    config = model.config
    side = getattr(config, "patch_size", None)
    tokens = model.global_attention
    return {
        "name": served.name,
        "version": served.version,
        "architecture": model_name(model),
        "task": model.card.task,
        "classes": list(served.predictor.classes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "preprocessing": {
            "img_size": list(preprocessing.img_size),
            "in_channels": preprocessing.in_channels,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": preprocessing.crop_mode,
            "interpolation": preprocessing.interpolation,
        },
        "calibration": None
        if not card.images
        else {
            "images": card.images,
            "temperature": card.temperature,
            "coverage": bool(card.conformal_scores),
            "outliers": card.outlier_energy is not None,
        },
        "methods": [
            {
                "name": name,
                "shows": METHODS[name].shows,
                "options": sorted(METHODS[name].options),
                "scored": METHODS[name].evidence,
            }
            for name in usable(offers_of(model))
        ],
        "depth": layer_count(model, rows=True) or None,
        "heads": getattr(config, "num_heads", None) if tokens else None,
        "grid": [size // part for size, part in zip(preprocessing.img_size, _pair(side), strict=True)]
        if tokens and side is not None
        else None,
    }


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side

"""Vitrail: the Vision Transformer toolkit one can read, trust and ship."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail import explain as explain
    from vitrail.deploy import Predictor, embed
    from vitrail.deploy.export import export
    from vitrail.models import ViT, create_model
    from vitrail.report import write_report
    from vitrail.settings import ViTConfig
    from vitrail.train import Run, pretrain, resume, train
    from vitrail.weights import load, suggest_names

__all__ = [
    "Predictor",
    "Run",
    "ViT",
    "ViTConfig",
    "create_model",
    "embed",
    "export",
    "load",
    "pretrain",
    "resume",
    "suggest_names",
    "train",
    "write_report",
]

_ROOMS = {  # imported when first asked for: `vitrail --help` has no use for torch
    "Predictor": "deploy",
    "Run": "train",
    "ViT": "models",
    "ViTConfig": "settings",
    "create_model": "models",
    "embed": "deploy",
    "export": "deploy.export",
    "load": "weights",
    "pretrain": "train",
    "resume": "train",
    "suggest_names": "weights",
    "train": "train",
    "write_report": "report",
}


def __getattr__(name: str) -> object:
    if name == "explain":
        return importlib.import_module("vitrail.explain")
    if name not in _ROOMS:
        raise AttributeError(f"module 'vitrail' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vitrail.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "explain"})

"""Predictions and embeddings from a run folder or a checkpoint."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from vitrail.deploy.backends import BACKENDS, Backend

# OpenVINO and NNCF report each import and each call to a statistics server, and work as well without this package of theirs.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it now fails

if TYPE_CHECKING:
    from vitrail.deploy.embeddings import Embedded, embed
    from vitrail.deploy.predict import Comparison, Prediction, Predictor, find_images

__all__ = ["BACKENDS", "Backend", "Comparison", "Embedded", "Prediction", "Predictor", "embed", "find_images"]


def __getattr__(name: str) -> object:  # the command line reads the table of backends without torch
    if name not in __all__:
        raise AttributeError(f"module 'vitrail.deploy' has no attribute '{name}'")
    file = "embeddings" if name in ("Embedded", "embed") else "predict"
    return getattr(importlib.import_module(f"vitrail.deploy.{file}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Predictions from a run folder or a checkpoint."""

from __future__ import annotations

from vitrail.deploy.predict import Prediction, Predictor, find_images

__all__ = ["Prediction", "Predictor", "find_images"]

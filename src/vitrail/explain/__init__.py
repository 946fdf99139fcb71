"""Explanation: maps of what a model looks at and what speaks for a class, each with a measure of its faithfulness."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vitrail.explain.table import METHODS, Method

if TYPE_CHECKING:
    from vitrail.explain.comparison import Comparison, compare
    from vitrail.explain.maps import Maps
    from vitrail.explain.methods.attention import attention, attention_sheet
    from vitrail.explain.methods.gradcam import gradcam
    from vitrail.explain.methods.integrated_gradients import integrated_gradients
    from vitrail.explain.methods.pca import TokenPca, pca
    from vitrail.explain.methods.relevance import relevance
    from vitrail.explain.methods.rollout import rollout
    from vitrail.explain.methods.similarity import similarity
    from vitrail.explain.sample import ImageSample, sample_images
    from vitrail.explain.score import Scores, faithfulness, random_maps, rank_correlation, shuffled
    from vitrail.explain.statistics import ModelStatistics, head_statistics

__all__ = [
    "METHODS",
    "Comparison",
    "ImageSample",
    "Maps",
    "Method",
    "ModelStatistics",
    "Scores",
    "TokenPca",
    "attention",
    "attention_sheet",
    "compare",
    "faithfulness",
    "gradcam",
    "head_statistics",
    "integrated_gradients",
    "pca",
    "random_maps",
    "rank_correlation",
    "relevance",
    "rollout",
    "sample_images",
    "shuffled",
    "similarity",
]

_FILES = {  # imported when first used: the command line reads the table of methods without torch
    "Comparison": "comparison",
    "ImageSample": "sample",
    "Maps": "maps",
    "ModelStatistics": "statistics",
    "Scores": "score",
    "TokenPca": "methods.pca",
    "attention_sheet": "methods.attention",
    "compare": "comparison",
    "faithfulness": "score",
    "head_statistics": "statistics",
    "random_maps": "score",
    "rank_correlation": "score",
    "sample_images": "sample",
    "shuffled": "score",
}


def __getattr__(name: str) -> object:
    if name in METHODS:
        return METHODS[name].run
    if name not in _FILES:
        raise AttributeError(f"module 'vitrail.explain' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vitrail.explain.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

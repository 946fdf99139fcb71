"""Model and images to pictures, and a number beside each: what a Vision Transformer looks at, and what speaks for a class."""

from vitrail.explain.attention import attention, attention_sheet, rollout
from vitrail.explain.gradients import gradcam, integrated_gradients, relevance
from vitrail.explain.maps import Maps
from vitrail.explain.score import Comparison, Scores, compare, faithfulness, random_maps, rank_correlation, shuffled
from vitrail.explain.statistics import ModelStatistics, head_statistics
from vitrail.explain.tokens import TokenPca, pca, similarity

__all__ = [
    "Comparison",
    "Maps",
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
    "shuffled",
    "similarity",
]

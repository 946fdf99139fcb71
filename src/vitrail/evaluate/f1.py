"""Precision, recall and F1 of each class, and macro F1 with its interval, from a confusion matrix. Pure functions."""

# K classes · R resamples

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vitrail.evaluate.intervals import Interval

RESAMPLES = 1000
"""Number of bootstrap resamples."""
CELLS_AT_ONCE = 2_000_000
"""Cells of the resampled matrices in memory at once."""


class ClassF1(NamedTuple):
    """Precision, recall and F1 of each class; NaN where there is nothing to divide by."""

    precision: Float[Tensor, " K"]
    recall: Float[Tensor, " K"]
    f1: Float[Tensor, " K"]
    """2 TP / (2 TP + FP + FN); NaN for a class that is neither a label nor a prediction."""


def class_f1(confusion: Int64[Tensor, "K K"]) -> ClassF1:
    """Compute precision, recall and F1 of each class from counts of true class (row) by predicted class (column)."""
    hits, true, predicted = confusion.diag().double(), confusion.sum(1).double(), confusion.sum(0).double()
    return ClassF1(hits / predicted, hits / true, 2 * hits / (true + predicted))


def macro_f1(confusion: Int64[Tensor, "K K"]) -> float:
    """Compute the mean F1 of the classes that are a label or a prediction of some image, as scikit-learn does."""
    return float(class_f1(confusion).f1.nanmean())


def macro_f1_interval(confusion: Int64[Tensor, "K K"], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Compute the interval of macro F1 by the bias-corrected bootstrap over images (Efron 1981). (0, 1) without images.

    A resample of images is a multinomial draw of the cells of the matrix. The correction matters for many classes of few
    images each, whose macro F1 is lower in resamples than in the sample. Raises ValueError for a level outside of 0 to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level} must be above 0 and below 1")
    total = int(confusion.sum())
    if not total:
        return 0.0, 1.0
    values = np.sort(resampled_macro_f1(confusion.numpy(), seed=seed))
    estimate, normal = macro_f1(confusion), NormalDist()
    below = float((values < estimate).mean() + (values == estimate).mean() / 2)
    shift = normal.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    tails = (normal.cdf(2 * shift + normal.inv_cdf(share)) for share in ((1 - level) / 2, (1 + level) / 2))
    low, high = (float(np.quantile(values, tail)) for tail in tails)
    return low, high


def resampled_macro_f1(confusion: np.ndarray, *, seed: int) -> Float64[np.ndarray, " R"]:
    """Return the macro F1 of `RESAMPLES` resamples of the images; only the cells that hold images are drawn."""
    true, predicted = confusion.nonzero()
    counts, classes = confusion[true, predicted], len(confusion)
    generator, found = np.random.default_rng(seed), []
    at_once = max(1, CELLS_AT_ONCE // (len(counts) + classes))
    rows, columns, hits = torch.from_numpy(true), torch.from_numpy(predicted), torch.from_numpy(true == predicted)
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        drawn = torch.from_numpy(generator.multinomial(counts.sum(), counts / counts.sum(), size=count)).double()
        images = torch.zeros(count, classes, dtype=torch.float64).index_add(1, rows, drawn).index_add(1, columns, drawn)
        diagonal = torch.zeros(count, classes, dtype=torch.float64).index_add(1, rows[hits], drawn[:, hits])
        found.append((2 * diagonal / images).nanmean(1))
    return torch.cat(found).numpy()

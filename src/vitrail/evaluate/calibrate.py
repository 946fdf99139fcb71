"""Fit what follows from held-out logits: temperature, conformal scores, outlier threshold."""

# N images · B batch · K classes

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Split
from vitrail.evaluate.calibration import fit_temperature
from vitrail.evaluate.conformal import calibration_scores
from vitrail.evaluate.evaluate import ALONE, Among, over_batches, require_finite
from vitrail.evaluate.outliers import energy, outlier_threshold
from vitrail.models.card import Calibration
from vitrail.settings import Preprocessing


class Answers(NamedTuple):
    """Logits of a split, on the CPU, in its order; unreadable images are left out."""

    logits: Float[Tensor, "N K"]
    labels: Int64[Tensor, " N"]
    indexes: Int64[Tensor, " N"]
    """Position of each image in the split."""


def answer(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    among: Among = ALONE,
) -> Answers:
    """Compute the logits of a split in evaluation view. Raises ValueError for an empty split, and logits that are not finite."""

    def take(logits: Tensor, raw: RawBatch) -> Answers:
        return Answers(logits.float().cpu(), raw.labels.cpu(), raw.indexes.cpu())

    batches = over_batches(
        take,
        model,
        split,
        preprocessing,
        batch_size=batch_size,
        device=torch.device(device),
        autocast_dtype=autocast_dtype,
        among=among,
    )
    parts = [each for part in among.gather(batches) for each in part]
    if not parts:
        raise ValueError("there are no images to evaluate; the split is empty or none of its files could be read")
    joined = Answers(*map(torch.cat, zip(*parts, strict=True)))
    require_finite(joined.logits.isfinite().all(1))
    order = joined.indexes.argsort()
    return Answers(*(value[order] for value in joined))


def calibrate(answers: Answers) -> Calibration:
    """Fit temperature, conformal scores and outlier threshold to answers on images that the model was not trained on.

    Raises ValueError for images without exactly one class.
    """
    if bool((answers.labels < 0).any()):
        raise ValueError("calibration needs one class for each image; these have several labels, or none")
    temperature = fit_temperature(answers.logits, answers.labels)
    return Calibration(
        images=len(answers.labels),
        temperature=temperature,
        conformal_scores=calibration_scores(answers.logits, answers.labels, temperature=temperature),
        outlier_energy=outlier_threshold(energy(answers.logits)),
    )

"""Fit what follows from held-out logits: temperature, conformal scores, outlier threshold."""

from __future__ import annotations

from vitrail.evaluate.calibration import fit_temperature
from vitrail.evaluate.conformal import calibration_scores
from vitrail.evaluate.evaluate import Answers
from vitrail.evaluate.outliers import energy, outlier_threshold
from vitrail.models.card import Calibration


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

"""Card of a model: metadata that is saved with the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing

Kind = Literal["classify", "multi-label"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Parameters fitted to a model's logits on held-out images, one class each."""

    images: int
    """Number of these images."""
    temperature: float = 1.0
    """Divides the logits before the softmax (Guo et al. 2017)."""
    conformal_scores: tuple[float, ...] = ()
    """Sorted scores of the right classes, from which sets of any coverage follow (`evaluate.conformal`)."""
    outlier_energy: float | None = None
    """Energy of the logits above which an image is unlike those of training (`evaluate.outliers`); None: not fitted."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Metadata of a model, copied as one record into run folders, exports, the Hub and other models."""

    preprocessing: Preprocessing | None = None
    """Image preprocessing, if the source of the weights states it."""
    classes: tuple[str, ...] = ()
    """Class names, if known."""
    task: Kind = "classify"
    """One class per image ("classify"), or any number of labels, each with its own sigmoid probability ("multi-label")."""
    calibration: Calibration | None = None
    """Temperature, conformal scores and outlier threshold of the logits of these classes; None: not calibrated."""
    images_seen: int | None = None
    """Images that it was trained on, each pass counted, with those of the weights it started from; None: not known."""
    receipt: Receipt | None = None
    """Status of every tensor of the loaded checkpoint."""

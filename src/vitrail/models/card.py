"""The card of a model: what its weights know besides numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing

Kind = Literal["classify", "multi-label"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One frozen record beside a model; it goes along into run folders, exports and the Hub, and whole from model to model."""

    preprocessing: Preprocessing | None = None
    """What happens to an image before the model, where the weights' origin says it."""
    classes: tuple[str, ...] = ()
    """Names of the classes, where known."""
    task: Kind = "classify"
    """One class an image; or any number of them, each with a probability of its own, the logit's sigmoid."""
    receipt: Receipt | None = None
    """What became of every tensor of the checkpoint that the weights come from."""

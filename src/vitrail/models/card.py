"""Card of a model: metadata that is saved with the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing

Kind = Literal["classify", "multi-label"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Metadata of a model, copied as one record into run folders, exports, the Hub and other models."""

    preprocessing: Preprocessing | None = None
    """Image preprocessing, if the source of the weights states it."""
    classes: tuple[str, ...] = ()
    """Class names, if known."""
    task: Kind = "classify"
    """One class per image ("classify"), or any number of labels, each with its own sigmoid probability ("multi-label")."""
    receipt: Receipt | None = None
    """Status of every tensor of the loaded checkpoint."""

"""The `model` section of any family."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from vitrail.settings.values import Pair

SCRATCH = "none"
"""Value of model.weights for random weights, even if pretrained ones are available."""


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The `model` section of any family: a name, weights, fields that follow from the data, and those of the family's config.

    A subclass is a family's config with these fields added; `config_type` names that config.
    """

    config_type: ClassVar[type[Any]]
    name: str
    """Model name; resets the other fields of the section."""
    weights: str | None = None
    """Checkpoint to start from, which decides the shape: Hub id, file or folder; null starts from random weights."""
    img_size: int | Pair = 224
    """Image side in pixels, or (height, width)."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""

    def shape(self) -> Any:
        """Return the family's config: the part of the section that the model is built from."""
        return self.config_type(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self.config_type)})

"""Settings of a torchvision or timm model: name, image size, channels, classes and regularisation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair, pair

BASELINES = ("torchvision", "timm")


def is_baseline(name: str) -> bool:
    """Return whether a name has a library in front: "torchvision:resnet50" or "timm:efficientnet_b0"."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library in BASELINES


def parse_baseline_name(name: str) -> dict[str, Any] | None:
    """Return {}, as the library knows the shape; None for a name without one. Raises ValueError for an unknown library."""
    if is_baseline(name):
        return {}
    if re.fullmatch(r"\w+:[\w.]*", name):
        raise ValueError(f'model "{name}": the libraries are {" and ".join(BASELINES)}, as in "torchvision:resnet50"')
    return None


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Config of a torchvision or timm model: name, image size, channels, classes and regularisation."""

    name: str
    """Name with the library in front: "torchvision:resnet50", "timm:efficientnet_b0"."""
    img_size: int | Pair = 224
    """Image side in pixels, or (height, width); most CNNs take any other, the rest are built for this one."""
    in_channels: int = 3
    """Channels of the images; the first convolution is fitted to them."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    drop_rate: float = 0.0
    """Dropout before the head, if the model has it."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, if the model has it."""

    def __post_init__(self) -> None:
        if not is_baseline(self.name):
            raise ValueError(f'"{self.name}" is no baseline; the libraries are {", ".join(BASELINES)}, as in "timm:resnet50"')
        if min(*pair(self.img_size), self.in_channels) < 1 or self.num_classes < 0:
            raise ValueError(f"{self.name}: img_size and in_channels must be at least 1, and num_classes not negative")
        for name in ("drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 0 and below 1")

    @property
    def library(self) -> str:
        """Library of the model: torchvision or timm."""
        return self.name.partition(":")[0]

    @property
    def theirs(self) -> str:
        """Name of the model within its library."""
        return self.name.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class BaselineModelConfig(BaselineConfig, ModelSection):
    """The `model` section of another library's model."""

    config_type = BaselineConfig

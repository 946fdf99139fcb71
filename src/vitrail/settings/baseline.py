"""Settings of another library's model: what the library calls it, and what an image and a class are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair, pair

BASELINES = ("torchvision", "timm")


def is_baseline(name: str) -> bool:
    """Whether a name is that of another library's model, "torchvision:resnet50" or "timm:efficientnet_b0"."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library in BASELINES


def parse_baseline_name(name: str) -> dict[str, Any] | None:
    """No fields, for the library knows the shape; None for a name without a library. Raises ValueError for an unknown one."""
    if is_baseline(name):
        return {}
    if re.fullmatch(r"\w+:[\w.]*", name):
        raise ValueError(f'model "{name}": the libraries are {" and ".join(BASELINES)}, as in "torchvision:resnet50"')
    return None


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Everything that decides a baseline: what its library calls it, and what an image and a class are."""

    name: str
    """As in the settings: "torchvision:resnet50", "timm:efficientnet_b0"."""
    img_size: int | Pair = 224
    """Image side in pixels, or (height, width). Most CNNs take any; those that don't are built for this one."""
    in_channels: int = 3
    """Channels of the images; the first convolution is fitted to them."""
    num_classes: int = 1000
    """Outputs of the head; 0 leaves the head out, and the logits are the embedding."""
    drop_rate: float = 0.0
    """Dropout before the head, where the model has it."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block, where the model has it."""

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
        """torchvision or timm."""
        return self.name.partition(":")[0]

    @property
    def theirs(self) -> str:
        """What the library calls it."""
        return self.name.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class BaselineModelConfig(BaselineConfig, ModelSection):
    """The `model` section of another library's model."""

    config_type = BaselineConfig

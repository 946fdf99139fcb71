"""The `distill` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The `distill` section: a teacher beside the labels (DeiT: Touvron et al. 2021)."""

    teacher: str | None = None
    """What `vitrail.load` takes, a run's folder above all; or "torchvision:regnet_y_16gf", "timm:…". Null: no teacher."""
    kind: Literal["hard", "soft"] = "hard"
    """Learn the teacher's decision, or its probabilities."""
    alpha: float = 0.5
    """The teacher's share of the loss."""
    tau: float = 3.0
    """Temperature of soft distillation."""
    once: bool = False
    """Ask the teacher about each image once, as it is, and mix its answers as the labels are (cf. Shen & Xing 2022).

    It then costs one pass over the images instead of a forward pass at every step, but does not see what crops, colours and
    erasing did to them. The answers take two bytes an image and class, and the pass is part of `train.minutes`.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distill.alpha {self.alpha} must be between 0 and 1")
        if self.tau <= 0:
            raise ValueError(f"distill.tau {self.tau} must be above 0")

"""The `distill` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The `distill` section: a teacher beside the labels (DeiT: Touvron et al. 2021)."""

    teacher: str | None = None
    """Teacher: a run folder or another checkpoint, "torchvision:regnet_y_16gf", or "timm:…"; null turns distillation off."""
    kind: Literal["hard", "soft"] = "hard"
    """Teacher's targets: its predicted class (hard), or its probabilities (soft)."""
    alpha: float = 0.5
    """Weight of the teacher's loss; the labels' loss has the rest."""
    tau: float = 3.0
    """Temperature of soft distillation."""
    once: bool = False
    """Compute the teacher's targets once, on unaugmented images, and mix them like the labels (cf. Shen & Xing 2022).

    This costs one pass over the images instead of a forward pass at every step, but ignores crops, colours and erasing. The
    targets take two bytes per image and class, and the pass is part of `train.minutes`.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distill.alpha {self.alpha} must be between 0 and 1")
        if self.tau <= 0:
            raise ValueError(f"distill.tau {self.tau} must be above 0")

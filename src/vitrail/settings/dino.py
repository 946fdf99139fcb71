"""Settings of DINO (Caron et al. 2021), with iBOT's masked part (Zhou et al. 2022) as an option."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """The `dino` section: self-distillation with no labels, for `vitrail pretrain --method dino`. Defaults are the paper's."""

    prototypes: int = 65536
    """Outputs of the head."""
    hidden_dim: int = 2048
    """Width of the head's two hidden layers."""
    bottleneck_dim: int = 256
    """Width of the head's normalised bottleneck."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's softmax after its warm-up."""
    warmup_temperature: float = 0.04
    """Temperature of the teacher's softmax at the start."""
    warmup_share: float = 0.3
    """Share of the run over which the teacher's temperature changes from the first to the last."""
    center_momentum: float = 0.9
    """Momentum of the centre of the teacher's outputs; 1 keeps it at zero, without centring."""
    teacher_momentum: float = 0.996
    """Momentum of the teacher's weights at the start; it rises to 1 by a cosine."""
    freeze_last_epochs: int = 1
    """Epochs at the start in which the head's last layer does not learn."""
    ibot_weight: float = 0.0
    """Weight of iBOT's loss on masked patches, beside 1 for the views; 0 leaves it out."""
    ibot_mask_ratio: tuple[float, float] = (0.1, 0.5)
    """With ibot_weight: minimum and maximum share of masked patches, by blocks, in half of the global views."""

    def __post_init__(self) -> None:
        for name in ("prototypes", "hidden_dim", "bottleneck_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"dino.{name} {getattr(self, name)} must be at least 1")
        for name in ("student_temperature", "teacher_temperature", "warmup_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"dino.{name} {getattr(self, name)} must be above 0")
        for name in ("warmup_share", "center_momentum", "teacher_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"dino.{name} {getattr(self, name)} must be between 0 and 1")
        if self.freeze_last_epochs < 0 or self.ibot_weight < 0:
            raise ValueError(
                f"dino: freeze_last_epochs {self.freeze_last_epochs} and ibot_weight {self.ibot_weight} must not be negative"
            )
        low, high = self.ibot_mask_ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"dino.ibot_mask_ratio {(low, high)} must be two numbers, 0 < least <= greatest < 1")

"""The `optim` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The `optim` section: how the weights move."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    """Muon moves the blocks' matrices and leaves the rest to AdamW."""
    lr: float = 1e-3
    """Peak learning rate at batch 1024; scaled linearly with the batch."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on norms, biases, tokens and the position embedding."""
    layer_decay: float = 1.0
    """Factor per block, going down; 0.65 to 0.85 when fine-tuning."""
    freeze: int | Literal["all"] = 0
    """Blocks, counted from the first, that do not learn, nor does the embedding before them; "all" leaves norm and head."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates; SGD takes the first as momentum."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.05
    """Share of the run in which the learning rate rises; 1 and above is a number of steps."""
    clip_norm: float | None = 1.0
    """Greatest norm of the gradient; null turns clipping off."""
    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy over all classes, or binary cross-entropy of each class (Wightman et al. 2021)."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""

    def __post_init__(self) -> None:
        for name in ("lr", "layer_decay"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} {getattr(self, name)} must be above 0")
        for name in ("weight_decay", "warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} {getattr(self, name)} must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas {self.betas} must be at least 0 and below 1")
        if self.freeze != "all" and self.freeze < 0:
            raise ValueError(f"optim.freeze {self.freeze} must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"optim.label_smoothing {self.label_smoothing} must be at least 0 and below 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm {self.clip_norm} must be above 0, or null")

    def frozen(self, depth: int) -> int:
        """How many of `depth` blocks do not learn."""
        return depth if self.freeze == "all" else self.freeze

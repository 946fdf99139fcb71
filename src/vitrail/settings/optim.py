"""The `optim` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The `optim` section: optimizer, schedule, regularisation and loss."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    """Optimizer; muon updates the blocks' matrices with Muon and the rest with AdamW."""
    muon_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number type of Muon's orthogonalisation; auto takes bf16 where the device computes it faster than fp32."""
    lr: float = 1e-3
    """Peak learning rate at batch 1024; scaled linearly with the batch."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on norms, biases, tokens and the position embedding."""
    layer_decay: float = 1.0
    """Learning-rate factor per block, from the head down; 0.65 to 0.85 for fine-tuning."""
    freeze: int | Literal["all"] = 0
    """Frozen blocks, counted from the first, along with the embedding; "all" trains only the last norm and the head."""
    warm_heads: float = 0.0
    """Share of the run at whose start only modules beside the model learn, such as the decoder and heads of `pretrain`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas; SGD takes the first as momentum."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup: float = 0.05
    """Warm-up of the learning rate: share of the run, or number of steps if 1 or above."""
    clip_norm: float | None = 1.0
    """Maximum norm of the gradient; null turns clipping off."""
    loss: Literal["ce", "bce"] = "ce"
    """Loss: cross-entropy over all classes, or binary cross-entropy of each class (Wightman et al. 2021)."""
    label_smoothing: float = 0.0
    """Label smoothing: share of the target spread over all classes."""

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
        if not 0 <= self.warm_heads < 1:
            raise ValueError(f"optim.warm_heads {self.warm_heads} must be at least 0 and below 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"optim.label_smoothing {self.label_smoothing} must be at least 0 and below 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm {self.clip_norm} must be above 0, or null")

    def frozen(self, depth: int) -> int:
        """Return the number of frozen blocks out of `depth`."""
        return depth if self.freeze == "all" else self.freeze

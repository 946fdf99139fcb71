"""Settings of the guard against collapse in training without labels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """The `guard` section: checks of `pretrain` that end a run whose embedding collapses. Thresholds: dev/LOG.md."""

    stop: bool = True
    """End the run on collapse, with the best checkpoint as its model; false makes no checks."""
    every: float = 0.05
    """Share of the run between two checks."""
    images: int = 512
    """Images of a check, drawn from the validation images, or without any from the training images."""
    patience: int = 2
    """Checks in a row that have to find a low rank, one prototype or no spread."""
    min_rank: float = 0.02
    """Collapse: effective rank below this share of its maximum, the smaller of embedding width and images."""
    rank_drop: float = 0.5
    """Collapse: effective rank below this share of that of the starting weights."""
    min_prototypes: float = 1.05
    """Collapse: effective number of prototypes that has fallen below this, in a method with prototypes (DINO)."""
    min_spread: float = 0.02
    """Collapse: share of the output dimensions in use below this, in a method whose outputs are to be normal (LeJEPA)."""
    knn_patience: int = 4
    """Checks in a row that have to find a low k-NN accuracy."""
    knn_drop: float = 0.1
    """Collapse: k-NN accuracy below the starting weights' by more than this share of images, shown in pairs at 95 %."""

    def __post_init__(self) -> None:
        if not 0 < self.every <= 1:
            raise ValueError(f"guard.every {self.every} must be above 0, and at most 1")
        for name in ("min_rank", "rank_drop", "min_spread", "knn_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"guard.{name} {getattr(self, name)} must be at least 0, which turns it off, and below 1")
        if self.min_prototypes and self.min_prototypes <= 1:
            raise ValueError(f"guard.min_prototypes {self.min_prototypes} must be above 1, which is one for all, or 0: no rule")
        for name in ("patience", "knn_patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"guard.{name} {getattr(self, name)} must be at least 1")
        if self.images < 32:
            raise ValueError(f"guard.images {self.images} are too few to tell a rank by; give 32 at least")

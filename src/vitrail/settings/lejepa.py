"""Settings of LeJEPA (Balestriero & LeCun 2025)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LejepaConfig:
    """The `lejepa` section: invariance of views and SIGReg (`vitrail pretrain --method lejepa`). Defaults are the paper's."""

    sigreg_weight: float = 0.02
    """λ: weight of SIGReg; the invariance has 1 - λ."""
    directions: int = 256
    """Random directions that the projections are tested along, drawn anew at each step."""
    knots: int = 17
    """Points in [0, 3] at which the characteristic functions are compared."""
    projector_dims: tuple[int, ...] = (2048, 2048)
    """Widths of the projector's hidden layers, each with batch norm and ReLU."""
    projector_out: int = 16
    """Width of the projections."""

    def __post_init__(self) -> None:
        if not 0 <= self.sigreg_weight <= 1:
            raise ValueError(f"lejepa.sigreg_weight {self.sigreg_weight} must be between 0 and 1")
        for name in ("directions", "projector_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"lejepa.{name} {getattr(self, name)} must be at least 1")
        if self.knots < 2:
            raise ValueError(f"lejepa.knots {self.knots} must be at least 2")
        if any(dim < 1 for dim in self.projector_dims):
            raise ValueError(f"lejepa.projector_dims {self.projector_dims} must be at least 1 each")

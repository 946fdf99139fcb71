"""The row of a contender: its library, its number type, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from vitrail.bench.case import Case
from vitrail.bench.processes import Call
from vitrail.models.machine import missing

Precision = Literal["fp32", "bf16"]
DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
"""Autocast type of each precision."""


@dataclass(frozen=True)
class Contender:
    """One row of a table: a library in one number type."""

    name: str
    precision: Precision
    build: Callable[[Case, Precision], Call]
    """Build in the contender's own process, and return the call to time. Raises ValueError if the library can't do it here."""
    packages: tuple[str, ...] = ()
    """Packages that it needs."""

    @property
    def key(self) -> str:
        """Name and number type."""
        return f"{self.name} {self.precision}"

    @property
    def absent(self) -> str | None:
        """Sentence that names packages that are not installed; None if all are."""
        return missing(self.packages)

"""Robustness of a run, as robustness.json has it: corruptions at five severities, and sweeps of one property."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vitrail.evaluate.intervals import Interval, interval_from

ROBUSTNESS = "robustness.json"


@dataclass(frozen=True)
class Measured:
    """Accuracy at one severity, or at one value of a sweep."""

    at: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Robustness:
    """Accuracy on changed images."""

    clean: float
    """Accuracy on the images as they are."""
    corruptions: Mapping[str, tuple[Measured, ...]]
    """Each corruption at its severities, from 1 to 5."""
    sweeps: Mapping[str, tuple[Measured, ...]]
    """Each sweep over its values, such as degrees of rotation."""

    @property
    def mean(self) -> float | None:
        """Mean accuracy over corruptions and severities; None without corruptions."""
        rows = [fmean(each.accuracy for each in row) for row in self.corruptions.values() if row]
        return fmean(rows) if rows else None

    def loss(self, corruption: str) -> float:
        """Return what a corruption costs: accuracy on clean images minus the mean over the severities."""
        return self.clean - fmean(each.accuracy for each in self.corruptions[corruption])


def read_robustness(folder: Path) -> Robustness | None:
    """Read robustness.json; None without one. Raises ValueError for a damaged file."""
    path = folder / ROBUSTNESS
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Robustness(
            clean=float(values["clean"]["accuracy"]),
            corruptions=read_rows(values.get("corruptions") or {}, "severity"),
            sweeps=read_rows(values.get("sweeps") or {}, "value"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({type(error).__name__}: {error}); measure it anew, or remove it") from error


def read_rows(rows: Mapping[str, Any], key: str) -> dict[str, tuple[Measured, ...]]:
    """Read named lists of measurements, each with its place under `key`; empty ones are left out."""
    return {
        name: tuple(Measured(float(each[key]), float(each["accuracy"]), interval_from(each["interval"])) for each in row)
        for name, row in rows.items()
        if row
    }

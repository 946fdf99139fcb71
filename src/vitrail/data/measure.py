"""Measure the values that images of more than 8 bits use, and the mean and deviation of bands that are no colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrail.data.bands import ValueRange, ValuesInUse, together, values_in_use
from vitrail.data.decode import BadImage, decode_planes, read_bands
from vitrail.data.files import Listed, map_files

MEASURED = 256
"""Files that are read, at equal distances over the set."""
_SIDE = 256  # pixels of the shorter side, at least, that a mean is taken of


def spread(files: Sequence[Listed], count: int = MEASURED) -> Sequence[Listed]:
    """Files at equal distances over a list."""
    return [files[int(at)] for at in np.linspace(0, len(files) - 1, min(count, len(files)))] if files else []


def measure_values(root: Path, files: Sequence[Listed], *, threads: int) -> ValuesInUse | None:
    """The values that a set uses. Files that can't be read are left out."""

    def of(file: Listed) -> ValuesInUse | BadImage | None:
        try:
            return values_in_use(read_bands(root / file.path))
        except BadImage as error:
            return error

    found = map_files(of, spread(files), threads=threads, doing="measuring the range of values")
    return together(one for one in found if not isinstance(one, BadImage))


def measure_bands(
    root: Path, files: Sequence[Listed], *, channels: int, value_range: ValueRange | None, threads: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each band, for pixels from 0 to 1; 0.5 and 0.25 where no file can be read."""

    def moments(file: Listed) -> tuple[list[float], list[float]] | None:
        try:
            planes = decode_planes(root / file.path, channels=channels, short_side=_SIDE, value_range=value_range)
        except BadImage:
            return None
        pixels = [np.asarray(plane, np.float64) / 255 for plane in planes]
        return [float(one.mean()) for one in pixels], [float(np.square(one).mean()) for one in pixels]

    found = [one for one in map_files(moments, spread(files), threads=threads, doing="measuring the bands") if one is not None]
    if not found:
        return (0.5,) * channels, (0.25,) * channels
    mean, square = (np.mean([one[which] for one in found], axis=0) for which in (0, 1))
    deviation = np.sqrt(np.maximum(square - mean**2, 0)).clip(1 / 255)  # a band that is the same everywhere is not divided by 0
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(d), 4) for d in deviation)

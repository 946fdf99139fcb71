"""Measure the value range of images with more than 8 bits, and mean and standard deviation of bands other than grey and RGB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrail.data.bands import ValueRange, ValuesInUse, merge_ranges, values_in_use
from vitrail.data.decode import BadImage, decode_planes, read_bands
from vitrail.data.files import Listed, map_files

MEASURED = 256
"""Number of files measured, evenly spaced over the set."""
_SIDE = 256  # least shorter side, in pixels, at which a JPEG is decoded


def sample_evenly(files: Sequence[Listed], count: int = MEASURED) -> Sequence[Listed]:
    """Return up to `count` evenly spaced files of a list."""
    return [files[int(at)] for at in np.linspace(0, len(files) - 1, min(count, len(files)))] if files else []


def measure_values(root: Path, files: Sequence[Listed], *, threads: int) -> ValuesInUse | None:
    """Measure the value range of a set; unreadable files are skipped. None if none has more than 8 bits."""

    def measure(file: Listed) -> ValuesInUse | BadImage | None:
        try:
            return values_in_use(read_bands(root / file.path))
        except BadImage as error:
            return error

    ranges = map_files(measure, sample_evenly(files), threads=threads, doing="measuring the range of values")
    return merge_ranges(values for values in ranges if not isinstance(values, BadImage))


def measure_bands(
    root: Path, files: Sequence[Listed], *, channels: int, value_range: ValueRange | None, threads: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each band, for pixels from 0 to 1; 0.5 and 0.25 if no file is readable."""

    def moments(file: Listed) -> tuple[list[float], list[float]] | None:
        try:
            planes = decode_planes(root / file.path, channels=channels, short_side=_SIDE, value_range=value_range)
        except BadImage:
            return None
        pixels = [np.asarray(plane, np.float64) / 255 for plane in planes]
        return [float(band.mean()) for band in pixels], [float(np.square(band).mean()) for band in pixels]

    results = map_files(moments, sample_evenly(files), threads=threads, doing="measuring the bands")
    measured = [result for result in results if result is not None]
    if not measured:
        return (0.5,) * channels, (0.25,) * channels
    mean, square = (np.mean([result[moment] for result in measured], axis=0) for moment in (0, 1))
    deviation = np.sqrt(np.maximum(square - mean**2, 0)).clip(1 / 255)  # a constant band would be divided by 0
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(d), 4) for d in deviation)

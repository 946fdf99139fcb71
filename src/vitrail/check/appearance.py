"""Findings about what an image shows: nothing (blank), little light (dark), no detail (blurred)."""

# N images · S side of a thumbnail

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from vitrail.check.finding import DataFinding
from vitrail.check.scan import ImageRecord, Scan

BLANK = 4
"""Range of the luminance (of 255), from the 1st to the 99th percentile, up to which an image is blank."""
DARK = 40
"""Luminance (of 255) that 99 % of the pixels of a dark image do not exceed."""
BLURRED = 0.65
"""Blur from which an image is blurred."""
DEVIATIONS = 4.0
"""Deviations from the set's median that a dark or a blurred image has as well, so that a set that is dark by nature is none."""


def find_empty_appearance(scan: Scan) -> Iterator[DataFinding]:
    """Yield blank, dark and blurred images. A blank one is neither dark nor blurred."""
    if scan.luminance is None or not len(scan.records):
        return
    low, high = _percentiles(scan.luminance)
    blank = high - low <= BLANK
    dark = (high <= DARK) & ~blank & _unusual(-high.astype(np.float64))
    for at in np.flatnonzero(blank):
        level = (int(low[at]) + int(high[at])) // 2
        path = (scan.records[at].image.path,)
        yield DataFinding(kind="blank", paths=path, evidence=f"one colour, luminance {level} of 255")
    for at in np.flatnonzero(dark):
        path, most = (scan.records[at].image.path,), int(high[at])
        yield DataFinding(
            kind="dark", paths=path, evidence=f"99 % of it has a luminance of {most} of 255 at most", score=float(255 - most)
        )
    yield from _find_blurred(scan.records, blank)


def _find_blurred(records: tuple[ImageRecord, ...], blank: np.ndarray) -> Iterator[DataFinding]:
    at = [i for i, record in enumerate(records) if record.blur is not None and not blank[i]]
    blur = np.array([records[i].blur for i in at], np.float64)
    if not len(blur):
        return
    for place in np.flatnonzero((blur >= BLURRED) & _unusual(blur)):
        value, path = float(blur[place]), records[at[place]].image.path
        evidence = f"blur {value:.2f} of 1; the median of the set is {float(np.median(blur)):.2f}"
        yield DataFinding(kind="blurred", paths=(path,), evidence=evidence, score=value)


def _percentiles(luminance: UInt8[np.ndarray, "N S S"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the 1st and the 99th percentile of the luminance of each thumbnail."""
    flat = luminance.reshape(len(luminance), -1)
    rest = flat.shape[1] // 100
    parted = np.partition(flat, (rest, flat.shape[1] - 1 - rest), axis=1)
    return parted[:, rest].astype(np.int64), parted[:, -1 - rest].astype(np.int64)


def _unusual(values: np.ndarray) -> np.ndarray:
    """Return True for values far above the median, by the median absolute deviation."""
    middle = np.median(values)
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return values - middle >= DEVIATIONS * max(spread, 1e-9)

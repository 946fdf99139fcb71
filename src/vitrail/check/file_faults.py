"""Findings about files: unreadable ones, extensions of another format, sizes and bands unlike the rest of the set."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from vitrail.check.finding import DataFinding
from vitrail.check.scan import ImageRecord, Unreadable
from vitrail.data.dataset import Source
from vitrail.data.decode import MissingImage, NoImage, OversizedImage, TruncatedImage

SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""Extensions of each format, by Pillow's name; the first is the usual one."""
SMALL = 0.25
"""Ratio to the median of the shorter sides below which an image is small."""
LONG = 4.0
"""Ratio of the sides from which an image is long, if it is also twice the set's median."""


def find_unreadable(unreadable: Sequence[Unreadable]) -> Iterator[DataFinding]:
    """Yield a finding for each file that can't be read."""
    kinds = (
        (MissingImage, "missing"),
        (OversizedImage, "oversized"),
        (TruncatedImage, "truncated"),
        (NoImage, "not-an-image"),
    )
    for image, error in unreadable:
        kind = next((kind for error_type, kind in kinds if isinstance(error, error_type)), "corrupt")
        yield DataFinding(kind=kind, paths=(image.path,), evidence=str(error))


def find_wrong_extensions(records: Sequence[ImageRecord]) -> Iterator[DataFinding]:
    """Yield a finding for each file whose extension is not of its format. Images of a named set have no format."""
    for record in records:
        name = record.header.format
        suffix = os.path.splitext(record.image.path)[1].lower()
        if name in SUFFIXES and suffix not in SUFFIXES[name]:
            yield DataFinding(
                kind="extension",
                paths=(record.image.path,),
                evidence=f"its contents are {name}, its extension is {suffix or 'missing'}",
                suggestion=f"rename it to {SUFFIXES[name][0]}",
            )


def find_odd_bands(records: Sequence[ImageRecord], source: Source) -> Iterator[DataFinding]:
    """Yield a finding for each image whose bands can't be converted to those that the set is trained with."""
    for record in records:
        bands = record.header.bands
        if bands != source.channels and not {bands, source.channels} <= {1, 3}:
            if source.channels == 4 and bands == 3:  # "RGBA" is counted without alpha
                continue
            yield DataFinding(
                kind="bands",
                paths=(record.image.path,),
                evidence=f"it has {bands} band{'s' * (bands != 1)} ({record.header.mode}), the set has {source.channels}",
            )


def find_odd_sizes(records: Sequence[ImageRecord]) -> Iterator[DataFinding]:
    """Yield a finding for each image that is much smaller or longer than the others."""
    if not records:
        return
    sizes = Counter(record.header.size for record in records)
    short = statistics.median(min(size) for size in sizes.elements())
    usual = statistics.median(max(size) / min(size) for size in sizes.elements())
    for record in records:
        height, width = record.header.size
        if min(height, width) < SMALL * short:
            yield DataFinding(
                kind="small",
                paths=(record.image.path,),
                evidence=f"{width} x {height} px; the median of the shorter sides is {short:g} px",
                score=short / min(height, width),
            )
        ratio = max(height, width) / min(height, width)
        if ratio >= max(LONG, 2 * usual):
            yield DataFinding(
                kind="aspect-ratio",
                paths=(record.image.path,),
                evidence=f"{width} x {height} px, {ratio:.1f} to 1; the median is {usual:.2g} to 1",
                score=ratio,
            )

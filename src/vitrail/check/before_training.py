"""The cheap part of `check`, which `vitrail train` runs first: no image is decoded, and it takes a few seconds at most."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator

from vitrail.check.classes import count_classes, find_class_faults
from vitrail.check.file_faults import SUFFIXES
from vitrail.check.image_set import FileImages
from vitrail.data.dataset import Source
from vitrail.data.decode import BadImage, read_header
from vitrail.data.files import Listed
from vitrail.data.folder import FolderSource
from vitrail.data.measure import sample_evenly

SECONDS = 3.0
"""Time after which no further file is compared."""
HEADERS = 64
"""Files, evenly spaced, whose headers are read."""
_LARGEST = 100_000_000  # bytes beyond which a file is not hashed


def check_before_training(source: Source, *, seconds: float = SECONDS) -> list[str]:
    """Return at most three lines about a folder: equal files, classes, broken files; none where nothing was found.

    Equal files are those of equal size and equal bytes: files are hashed only where another has the same size, and until
    `seconds` have passed. A named set is not looked at.
    """
    if not isinstance(source, FolderSource):
        return []
    images = FileImages(source)
    return [f"check: {line}" for line in (*_equal_files(images, seconds), *_classes(images), *_headers(source))]


def _equal_files(images: FileImages, seconds: float) -> Iterator[str]:
    """Yield a line about files with the same bytes."""
    source, until = images.source, time.monotonic() + seconds
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    looked = 0
    for index, image in enumerate(images.images):
        if not index % 256 and time.monotonic() > until:
            break
        try:
            by_size[os.stat(source.root / image.path).st_size].append(index)
        except OSError:
            continue
        looked = index + 1
    groups: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for size, indexes in sorted(by_size.items()):  # small files first: more of them in the time there is
        for index in indexes if len(indexes) > 1 and 0 < size <= _LARGEST else []:
            if time.monotonic() > until:
                looked = 0
                break
            try:
                groups[size, images.hash_file(index)].append(index)
            except OSError:
                continue
    members = [[images.images[index] for index in group] for group in groups.values() if len(group) > 1]
    if not members:
        return
    count = sum(len(group) - 1 for group in members)
    what = [f"{count} file{'s' * (count > 1)} equal to another"]
    across = sum(len({image.split for image in group}) > 1 for group in members)
    what += [f"{across} of them in more than one split"] if across else []
    labels = sum(len({image.labels for image in group}) > 1 for group in members)
    what += [f"{labels} under different labels"] if labels else []
    some = "" if looked == len(images) else f" (not all files were compared in {seconds:g} s)"
    example = ", ".join(image.path for image in members[0][:2])
    yield f"{', '.join(what)}{some}, such as {example}"


def _classes(images: FileImages) -> Iterator[str]:
    """Yield a line about the sizes of the classes."""
    source, listed = images.source, [(image.split, image.labels) for image in images.images]
    found = list(find_class_faults(count_classes(source, listed), noun="label" if source.multi_label else "class"))
    small, uneven = ([f.evidence for f in found if f.kind == kind] for kind in ("small-class", "imbalance"))
    if small or uneven:
        more = f" and {len(small) - 1} more such" if len(small) > 1 else ""
        yield "; ".join([*([small[0] + more] if small else []), *uneven])


def _headers(source: FolderSource) -> Iterator[str]:
    """Yield a line about files that can't be read or have the extension of another format."""
    files: list[Listed] = [file for split in source.files.values() for file in split]
    sample, bad, renamed = sample_evenly(files, HEADERS), list[str](), list[str]()
    for file in sample:
        try:
            header = read_header(source.root / file.path)
        except BadImage as error:
            bad.append(f"{file.path}: {error}")
            continue
        if header.format in SUFFIXES and os.path.splitext(file.path)[1].lower() not in SUFFIXES[header.format]:
            renamed.append(f"{file.path} is {header.format}")
    if bad or renamed:
        what = [f"{len(bad)} can't be read ({bad[0]})"] if bad else []
        what += [f"{len(renamed)} have the extension of another format ({renamed[0]})"] if renamed else []
        yield f"of {len(sample)} files looked at, {' and '.join(what)}; vitrail check looks at all"

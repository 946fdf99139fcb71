"""Check a data set before training: image counts, unreadable files, duplicates across splits, contradictory labels."""

# N images

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.bands import ValuesInUse, merge_ranges, values_in_use
from vitrail.data.dataset import Skipped, Source, SplitName
from vitrail.data.decode import BadImage, Header, decode, read_bands, read_header
from vitrail.data.files import Listed, map_files
from vitrail.data.folder import FolderSource
from vitrail.data.labelled import LabelledSource
from vitrail.data.named import NAMED, NamedSource, read_arrays
from vitrail.data.sources import open_source
from vitrail.settings import Pair
from vitrail.text import printable

_SHOWN = 10  # bad files and duplicates in the text


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of `check`."""

    name: str
    counts: dict[SplitName, dict[str, int]]
    """Readable images by split and class, including empty classes. A multi-label image counts for each of its labels."""
    totals: dict[SplitName, int]
    """Readable images by split."""
    labels: dict[int, int] | None
    """Images by their number of labels; None if each has one class."""
    sizes: dict[Pair, int]
    """Images of each (height, width), upright."""
    modes: dict[str, int]
    """Images of each pixel format, by Pillow's name."""
    bad: tuple[Skipped, ...]
    """Files that can't be read."""
    duplicates: tuple[tuple[str, ...], ...]
    """Groups of images with equal content in more than one split."""
    values: Mapping[SplitName, ValuesInUse] = field(default_factory=dict)
    """Value range of the images with more than 8 bits, by split."""
    contradictions: tuple[tuple[str, ...], ...] = ()
    """Groups of images with equal content that have different classes or labels."""
    notes: tuple[str, ...] = ()
    """Messages about how the folder was read: which folder serves as which split, what is not used."""

    @property
    def images(self) -> int:
        """Number of readable images."""
        return sum(self.totals.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable values."""
        several = {} if self.labels is None else {"labels": [{"labels": k, "images": n} for k, n in self.labels.items()]}
        return {
            "name": self.name,
            "images": self.images,
            "counts": self.counts,
            "sizes": [{"height": height, "width": width, "images": n} for (height, width), n in self.sizes.items()],
            "modes": self.modes,
            **several,
            "values": {
                split: dataclasses.asdict(used) | {"range": used.range or "full", "warning": used.few_levels(used.range)}
                for split, used in self.values.items()
            },
            "bad": [{"path": path, "reason": reason} for path, reason in self.bad],
            "duplicates": self.duplicates,
            "contradictions": self.contradictions,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        splits = list(self.counts)
        classes = list(self.counts[splits[0]])
        noun, several = ("class", "classes") if self.labels is None else ("label", "labels")
        wide = max(len(noun), *(len(name) for name in classes))
        unreadable = f"{len(self.bad)} unreadable file{'s' * (len(self.bad) != 1)}"
        lines = [f"{self.name}: {self.images} images, {len(classes)} {several}, {unreadable}", ""]
        lines += ["  ".join([f"{noun:{wide}}", *(f"{split:>7}" for split in splits)])]
        lines += ["  ".join([f"{k:{wide}}", *(f"{self.counts[split][k]:7}" for split in splits)]) for k in classes]
        lines += ["  ".join([f"{'all':{wide}}", *(f"{self.totals[split]:7}" for split in splits)]), ""]
        if self.labels:
            mean = sum(number * images for number, images in self.labels.items()) / self.images
            most = f"labels an image: {min(self.labels)} to {max(self.labels)}, {mean:.2g} on average"
            lines += [most + (f"; {self.labels[0]} images have none" if 0 in self.labels else "")]
        if self.sizes:
            short = sorted(min(size) for size, count in self.sizes.items() for _ in range(count))
            lines += [f"short side: {short[0]} to {short[-1]} px, half of them up to {short[(len(short) - 1) // 2]} px"]
        lines += ["pixels: " + ", ".join(f"{mode} {count}" for mode, count in sorted(self.modes.items()))]
        for split, used in self.values.items():
            ends = "the whole range" if used.range is None else f"{used.range[0]:.6g} to {used.range[1]:.6g}"
            lines += [f"{split}: {used}; data.range auto takes {ends} of train" if split == "train" else f"{split}: {used}"]
            if split == "train" and (few := used.few_levels(used.range)):
                lines += [f"{split}: {few}"]
        lines += [f"unreadable: {path}: {reason}" for path, reason in self.bad[:_SHOWN]]
        lines += [f"and {len(self.bad) - _SHOWN} more unreadable files"] * (len(self.bad) > _SHOWN)
        lines += [f"the same image on two sides: {', '.join(group)}" for group in self.duplicates[:_SHOWN]]
        lines += [f"and {len(self.duplicates) - _SHOWN} more images on two sides"] * (len(self.duplicates) > _SHOWN)
        lines += [f"the same image under two {several}: {', '.join(group)}" for group in self.contradictions[:_SHOWN]]
        more = len(self.contradictions) - _SHOWN
        lines += [f"and {more} more images under two {several}"] * (more > 0)
        lines += self.notes
        return "\n".join(map(printable, lines))


@dataclass(frozen=True)
class _ImageRecord:
    """One readable image."""

    split: SplitName
    labels: tuple[int, ...]
    path: str
    size: Pair
    mode: str
    values: ValuesInUse | None
    """Value range; None for 8 bits."""
    content: bytes
    """Hash of the file; of the pixels in a named set."""


def check(path: str, *, val_fraction: float = 0.1, threads: int = -1) -> Report:
    """Read every image of a named set or folder. Raises ValueError as open_source does, but not for unreadable files."""
    source = open_source(path, val_fraction=val_fraction)
    if isinstance(source, FolderSource):
        records, bad = _read_folder(source, threads=threads)
    else:
        assert isinstance(source, NamedSource)
        records, bad = _read_named(source), []
    return _summarize(source, records, bad)


def _summarize(source: Source, records: Sequence[_ImageRecord], bad: Sequence[Skipped]) -> Report:
    count = Counter((image.split, label) for image in records for label in image.labels)
    total = Counter(image.split for image in records)
    by_content: defaultdict[bytes, list[_ImageRecord]] = defaultdict(list)
    for image in records:
        by_content[image.content].append(image)
    values = {split: merge_ranges(image.values for image in records if image.split == split) for split in source.splits}
    return Report(
        name=source.name,
        counts={split: {name: count[split, k] for k, name in enumerate(source.classes)} for split in source.splits},
        totals={split: total[split] for split in source.splits},
        labels=dict(sorted(Counter(len(image.labels) for image in records).items())) if source.multi_label else None,
        sizes=dict(Counter(image.size for image in records)),
        modes=dict(Counter(image.mode for image in records)),
        bad=tuple(bad),
        duplicates=tuple(
            tuple(image.path for image in group) for group in by_content.values() if len({image.split for image in group}) > 1
        ),
        contradictions=tuple(
            tuple(image.path for image in group) for group in by_content.values() if len({image.labels for image in group}) > 1
        ),
        values={split: used for split, used in values.items() if used is not None},
        notes=source.notes,
    )


def _read_folder(source: FolderSource, *, threads: int) -> tuple[list[_ImageRecord], list[Skipped]]:
    records: list[_ImageRecord] = []
    bad: list[Skipped] = []

    def labels_of(file: Listed) -> tuple[int, ...]:
        if isinstance(source, LabelledSource):
            return tuple(source.multi_hot[file.label].nonzero()[:, 0].tolist())
        return (file.label,)

    for split, files in source.files.items():

        def inspect(file: Listed, split: SplitName = split) -> _ImageRecord | Skipped:
            try:
                header = read_header(source.root / file.path)
                values = values_of(source.root / file.path, header)  # decodes to the end of the file
                content = _file_hash(source.root / file.path)
            except (BadImage, OSError) as error:
                return Skipped(file.path, str(error))
            return _ImageRecord(split, labels_of(file), file.path, header.size, header.mode, values, content)

        for result in map_files(inspect, files, threads=threads, doing=f"{split}: looking at every file"):
            if isinstance(result, Skipped):
                bad.append(result)
            else:
                records.append(result)
    return records, bad


def values_of(path: Path, header: Header) -> ValuesInUse | None:
    """Decode a file, and measure its value range if it has more than 8 bits. Raises BadImage."""
    if header.bits == 8 and header.bands in (1, 3):
        decode(path, channels=3, short_side=64)  # at small scale
        return None
    return values_in_use(read_bands(path))


def _read_named(source: NamedSource) -> list[_ImageRecord]:
    kind, records = NAMED[source.name], []
    files: tuple[SplitName, ...] = ("train", "test")
    for file in files:
        images, labels = read_arrays(kind, source.folder, file)
        names = [f"{source.name}/{file}/{i}" for i in range(len(labels))]
        held_out = source.held_out(names) if file == "train" else np.zeros(len(names), bool)
        for name, image, label, held in zip(names, images, labels, held_out, strict=True):
            mode = "L" if kind.channels == 1 else "RGB"
            content = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            records.append(_ImageRecord("val" if held else file, (int(label),), name, kind.img_size, mode, None, content))
    return records


def _file_hash(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()

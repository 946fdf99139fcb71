"""Result of `check`: figures of a data set, and all findings."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.check.classes import ClassCounts
from vitrail.check.colours import ColourStatistics
from vitrail.check.finding import KINDS, DataFinding
from vitrail.data.bands import ValuesInUse
from vitrail.data.dataset import SplitName
from vitrail.settings import Pair
from vitrail.text import printable
from vitrail.weights.run_folder import write_atomically

UNREADABLE = ("missing", "not-an-image", "truncated", "corrupt", "oversized")
"""Kinds of files that can't be read."""


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """Figures and findings of a data set."""

    name: str
    counts: ClassCounts
    """Readable images by split and class, including empty classes. A multi-label image counts for each of its labels."""
    totals: dict[SplitName, int]
    """Readable images by split."""
    labels: dict[int, int] | None
    """Images by their number of labels; None if each has one class, and without classes."""
    sizes: dict[Pair, int]
    """Images of each (height, width), upright."""
    modes: dict[str, int]
    """Images of each pixel format, by Pillow's name."""
    formats: dict[str, int]
    """Images of each file format; empty for a named set."""
    colours: ColourStatistics | None
    """Colours of some training images; None without images of 8 bits."""
    values: Mapping[SplitName, ValuesInUse] = field(default_factory=dict)
    """Value range of the images with more than 8 bits, by split."""
    findings: tuple[DataFinding, ...] = ()
    """All findings, in the order of `KINDS` and from strong to weak."""
    left_out: tuple[str, ...] = ()
    """Parts that do not apply to this data set, each with its reason."""
    notes: tuple[str, ...] = ()
    """Messages about how the folder was read: which folder serves as which split, what is not used."""

    @property
    def images(self) -> int:
        """Number of readable images."""
        return sum(self.totals.values())

    @property
    def unreadable(self) -> tuple[DataFinding, ...]:
        """Findings about files that can't be read."""
        return tuple(finding for finding in self.findings if finding.kind in UNREADABLE)

    def of_kind(self, kind: str) -> tuple[DataFinding, ...]:
        """Return the findings of a kind. Raises ValueError for a kind that is none of `KINDS`."""
        if kind not in KINDS:
            raise ValueError(f'"{kind}" is none of the findings {", ".join(KINDS)}')
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def by_kind(self) -> Iterator[tuple[str, tuple[DataFinding, ...]]]:
        """Yield each kind that was found, with its findings."""
        for kind in KINDS:
            if findings := self.of_kind(kind):
                yield kind, findings

    def describe(self) -> list[str]:
        """Return lines of text about the set as a whole, without the findings."""
        lines = [f"pixels: {', '.join(f'{mode} {count}' for mode, count in sorted(self.modes.items())) or 'none'}"]
        if self.formats:
            lines += [f"files: {', '.join(f'{name} {count}' for name, count in sorted(self.formats.items()))}"]
        if self.sizes:
            short = sorted(min(size) for size in Counter(self.sizes).elements())
            ratios = [max(size) / min(size) for size in Counter(self.sizes).elements()]
            lines += [f"short side: {short[0]} to {short[-1]} px, half of them up to {short[(len(short) - 1) // 2]} px"]
            lines += [f"sides: up to {max(ratios):.2g} to 1, half of them up to {statistics.median_low(ratios):.2g} to 1"]
        if self.labels:
            mean = sum(number * images for number, images in self.labels.items()) / max(1, self.images)
            most = f"labels an image: {min(self.labels)} to {max(self.labels)}, {mean:.2g} on average"
            lines += [most + (f"; {self.labels[0]} images have none" if 0 in self.labels else "")]
        if self.colours is not None:
            lines += [f"colours: {self.colours}"]
        for split, used in self.values.items():
            ends = "the whole range" if used.range is None else f"{used.range[0]:.6g} to {used.range[1]:.6g}"
            lines += [f"{split}: {used}; data.range auto takes {ends} of train" if split == "train" else f"{split}: {used}"]
        return [printable(line) for line in [*lines, *self.notes]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-serialisable values."""
        several = {} if self.labels is None else {"labels": [{"labels": k, "images": n} for k, n in self.labels.items()]}
        return {
            "name": self.name,
            "images": self.images,
            "counts": self.counts,
            "totals": self.totals,
            "sizes": [{"height": height, "width": width, "images": n} for (height, width), n in self.sizes.items()],
            "modes": self.modes,
            "formats": self.formats,
            **several,
            "colours": None if self.colours is None else self.colours.to_dict(),
            "values": {
                split: dataclasses.asdict(used) | {"range": used.range or "full", "warning": used.few_levels(used.range)}
                for split, used in self.values.items()
            },
            "findings": [finding.to_dict() for finding in self.findings],
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }

    def write_json(self, path: str | Path) -> Path:
        """Write `to_dict` as JSON, atomically. Return the path."""
        with write_atomically(Path(path)) as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return Path(path)

    def write_fix_list(self, path: str | Path) -> Path:
        """Write a CSV with the columns file, finding, evidence and suggestion: one line for each file of each finding.

        A finding about the whole set has no file. Raises ValueError if the file can't be written.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "finding", "evidence", "suggestion"])
        for finding in self.findings:
            for file in finding.paths or ("",):
                writer.writerow([file, finding.kind, finding.evidence, finding.advice])
        try:
            with write_atomically(Path(path)) as draft:
                draft.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise ValueError(f"{path} can't be written ({error.strerror}); name a file in a folder that exists") from None
        return Path(path)

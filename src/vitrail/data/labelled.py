"""Multi-label folders: labels.csv has one line per image, with any number of labels."""

# N images · K classes

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from vitrail.data.dataset import Split, SplitName, stable_fraction
from vitrail.data.files import Listed
from vitrail.data.folder import FolderSource, held_out_files, pixels_of, split_without_folders
from vitrail.data.listing import composed, natural
from vitrail.data.splits import split_of
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing

TABLE = "labels.csv"
PATH, LABELS, SPLIT = "path", "labels", "split"
"""Columns of the table; "split" is optional."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSource(FolderSource):
    """Multi-label images. The `label` of a listed file is its row in `multi_hot`."""

    multi_hot: Bool[Tensor, "N K"]
    """Classes of each image of the table."""

    def load(
        self, split: SplitName, *, preprocessing: Preprocessing, cfg: DataConfig, augment: AugmentConfig | None = None
    ) -> Split:
        """See Source.load. Also raises ValueError for data.balance "sampler"."""
        if cfg.balance == "sampler":
            raise ValueError('data.balance "sampler" draws by class, and these images have any number of labels; use "none"')
        images = super().load(split, preprocessing=preprocessing, cfg=cfg, augment=augment)
        images.multi_hot = self.multi_hot[images.labels]
        images.labels = torch.full_like(images.labels, -1)
        return images

    def with_fraction(self, fraction: float) -> LabelledSource:
        """See Source.with_fraction: a share by a hash of the paths, and at least one image with each label."""
        files = sorted(self.files.get("train", ()), key=lambda file: stable_fraction(file.path))
        first, seen = list[Listed](), torch.zeros(len(self.classes), dtype=torch.bool)
        for file in files:
            if bool((self.multi_hot[file.label] & ~seen).any()):
                first.append(file)
                seen = seen | self.multi_hot[file.label]
        leading = set(first)
        others = [file for file in files if file not in leading]
        kept = {*first, *others[: max(0, round(fraction * len(files)) - len(first))]}
        return replace(self, files={**self.files, "train": tuple(file for file in self.files.get("train", ()) if file in kept)})

    def check_classes(self, images: Split) -> None:
        """Raise ValueError for a label without a readable training image; the labels of `images` are rows of `multi_hot`."""
        listed = self.multi_hot[[file.label for file in self.files["train"]]].any(0)
        if lost := (listed & ~self.multi_hot[images.labels].any(0)).nonzero()[:, 0].tolist():
            raise ValueError(
                f'{self.root / TABLE}: label "{self.classes[lost[0]]}" has no readable training image; add some, or remove it'
            )

    def class_counts(self) -> tuple[int, ...]:
        """Count the training images with each label; includes unreadable files."""
        rows = [file.label for file in self.files.get("train", ())]
        return tuple(self.multi_hot[rows].sum(0).tolist())

    def train_images(self) -> int:
        """See Source.train_images."""
        return len(self.files.get("train", ()))


class TableRow(NamedTuple):
    """One line of the table: an image and its labels."""

    line: int
    path: str
    labels: tuple[str, ...]
    split: SplitName | None


def open_labelled(root: Path, *, val_fraction: float) -> LabelledSource:
    """Read labels.csv; no image is decoded.

    Without a split column, splits are drawn from a hash of each path, as in `open_folder`. Raises ValueError with the line
    number for an invalid line, and for a label without training images.
    """
    table = root / TABLE
    rows, notes = read_table(table)
    names = sorted({name for row in rows for name in row.labels}, key=natural)
    if not names:
        what = "labels" if rows else "images"
        raise ValueError(f"{table} names no {what}; write one line an image, such as beach/1.jpg,sea;sky")
    trained = {name for row in rows if row.split == "train" for name in row.labels}
    for row in rows:
        if row.split and (lone := [name for name in row.labels if name not in trained]):
            raise ValueError(f'{table}: label "{lone[0]}" is in {row.split} but not in train; add images to train or remove it')
    rank = {name: k for k, name in enumerate(names)}
    multi_hot = torch.zeros(len(rows), len(names), dtype=torch.bool)
    sides: dict[SplitName, list[Listed]] = {"train": [], "val": [], "test": []}
    drawn = split_without_folders([(row.path, set(row.labels)) for row in rows if row.split is None])
    for at, row in enumerate(rows):
        multi_hot[at, [rank[name] for name in row.labels]] = True
        sides[row.split or drawn[row.path]].append(Listed(on_disk(root, row.path), at))
    if not sides["val"]:
        held_out = held_out_files([(file.path, set(rows[file.label].labels)) for file in sides["train"]], val_fraction)
        sides["val"] = [file for file in sides["train"] if file.path in held_out]
        sides["train"] = [file for file in sides["train"] if file.path not in held_out]
    files = {split: tuple(listed) for split, listed in sides.items() if listed}
    return LabelledSource(
        name=root.resolve().name,
        classes=tuple(names),
        img_size=None,
        **pixels_of(root, [file for listed in files.values() for file in listed]),
        splits=tuple(files),
        multi_label=True,
        notes=tuple(notes),
        root=root,
        files=files,
        multi_hot=multi_hot,
    )


def on_disk(root: Path, path: str) -> str:
    """Return the spelling of a path that exists on disk: "é" may be one character in the table and two on disk."""
    spellings = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    return next((spelling for spelling in spellings if (root / spelling).exists()), path)


def is_labelled(table: Path) -> bool:
    """Return True if a CSV file has the columns "path" and "labels"."""
    return {PATH, LABELS} <= set(columns(table))


def columns(table: Path) -> tuple[str, ...]:
    """Return the column names of a CSV file, in lower case; empty if it can't be read."""
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            return tuple(name.strip().lower() for name in next(csv.reader(file), ()))
    except (OSError, csv.Error):
        return ()


def read_table(table: Path) -> tuple[list[TableRow], list[str]]:
    """Read the rows of a table of labels; return them and a note on unused columns.

    Raises ValueError for the first invalid line.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)  # else an unclosed quote would swallow lines
            header = [name.strip().lower() for name in next(lines, ())]
            if twice := [name for name in (PATH, LABELS, SPLIT) if header.count(name) > 1]:
                raise ValueError(f'{table} has two columns "{twice[0]}"; keep one')
            rows = [_parse_row(table, lines.line_num, header, line) for line in lines if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        where = f"{table}, line {lines.line_num}," if isinstance(error, csv.Error) else str(table)
        raise ValueError(f"{where} can't be read ({error}); save it as CSV in UTF-8") from None
    first: dict[str, TableRow] = {}
    for row in rows:
        if (same := composed(row.path)) in first:
            twice_in = f"{table}, line {row.line}: {row.path} stands on line {first[same].line} too"
            raise ValueError(f'{twice_in}; keep one line an image, its labels with ";" between')
        first[same] = row
        if (row.split is None) != (rows[0].split is None):
            line_of = row.line if row.split is None else rows[0].line
            raise ValueError(
                f"{table}, line {line_of}: there is no split, and other lines have one; fill it in, or leave the column out"
            )
    others = [name for name in header if name not in ("", PATH, LABELS, SPLIT)]
    return rows, [f"not used: the columns {', '.join(others)} of {table.name}"] if others else []


def _parse_row(table: Path, line: int, header: Sequence[str], values: Sequence[str]) -> TableRow:
    """Parse and validate one line."""
    here = f"{table}, line {line}:"
    if len(values) > len(header):
        extra = ", ".join(values[len(header) :])
        raise ValueError(
            f'{here} there are more cells than in the header ("{extra}" has no column); write the labels of an image '
            'in one cell, with ";" between, and quote a cell that holds a comma'
        )
    if "" in header and any(value.strip() for name, value in zip(header, values, strict=False) if not name):
        raise ValueError(f"{here} there is a cell in a column without a name; name the column, or clear it")
    cells = dict(zip(header, values, strict=False))
    if PATH not in cells or LABELS not in cells:
        raise ValueError(
            f"{here} there are fewer cells than in the header; write path,labels, and nothing behind the comma for none"
        )
    path = PurePosixPath(cells[PATH].strip().replace("\\", "/"))  # a table may have been written on Windows
    if path.is_absolute() or ".." in path.parts or not path.parts or not str(path).isprintable():
        raise ValueError(
            f'{here} path "{cells[PATH]}" does not lead to a file in the folder; write it relative to {table.parent}'
        )
    side = cells.get(SPLIT, "").strip().lower()
    if side and split_of(side) is None:
        raise ValueError(f'{here} split "{side}" is none of train, val, test')
    labels = dict.fromkeys(composed(label.strip()) for label in cells[LABELS].split(";"))
    return TableRow(line, str(path), tuple(label for label in labels if label), split_of(side))

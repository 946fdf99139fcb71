"""Open a data set by name or folder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from vitrail.data.dataset import NoClasses, Skipped, Source, Split, SplitName
from vitrail.data.folder import FolderSource, open_folder
from vitrail.data.labelled import LABELS, PATH, TABLE, columns, is_labelled, open_labelled
from vitrail.data.named import NAMED, data_folder, open_named
from vitrail.data.unlabelled import has_plain_splits, open_unlabelled, too_many_outside
from vitrail.settings import nearest
from vitrail.text import printable_errors

__all__ = ["NAMES", "NoClasses", "Skipped", "Source", "Split", "SplitName", "open_source"]

NAMES = (*NAMED, "imagenet")


@printable_errors()
def open_source(path: str, *, val_fraction: float = 0.1, fraction: float = 1.0, classes: bool = True) -> Source:
    """Open a data set by name or path; a named set is downloaded if it is not on disk.

    `val_fraction` of the training images is held out for validation if the set has no validation images, and `fraction` of
    the others is used. With `classes` False, folders without classes are accepted, and those with images outside of classes;
    their images have label -1.
    Raises ValueError, in one line, for an unknown name, a missing folder and a folder without images.
    """
    source = _open_whole(path, val_fraction=val_fraction, classes=classes)
    return source if fraction == 1 else source.with_fraction(fraction)


def _open_whole(path: str, *, val_fraction: float, classes: bool) -> Source:
    """Open a data set with all of its training images."""
    if path in NAMED:
        return open_named(path, val_fraction=val_fraction)
    if path == "imagenet":
        return open_folder(_find_imagenet(), val_fraction=val_fraction)
    folder = Path(path).expanduser()
    if not folder.exists():
        raise ValueError(f'data "{path}" is neither a folder nor one of {", ".join(NAMES)}{nearest(path, list(NAMES))}')
    if classes:
        return _open_with_classes(folder, val_fraction=val_fraction)
    if folder.is_dir() and not (folder / TABLE).exists() and has_plain_splits(folder):
        return open_unlabelled(folder, val_fraction=val_fraction)
    try:
        source = _open_with_classes(folder, val_fraction=val_fraction)
    except NoClasses:
        return open_unlabelled(folder, val_fraction=val_fraction)
    if isinstance(source, FolderSource) and too_many_outside(source):
        why = f"{source.outside} image{'s' * (source.outside > 1)} outside of class folders: all are used, and none has a class"
        without = open_unlabelled(folder, val_fraction=val_fraction)
        return dataclasses.replace(without, notes=(why, *without.notes))
    return source


def _open_with_classes(folder: Path, *, val_fraction: float) -> Source:
    """Open a folder by its labels.csv, or with one folder per class."""
    table = folder / TABLE
    if not table.is_file():
        return open_folder(folder, val_fraction=val_fraction)
    if is_labelled(table):
        return open_labelled(folder, val_fraction=val_fraction)
    names = columns(table)
    format_hint = f"for several labels an image name two of them {PATH} and {LABELS}, with commas between"
    if len(names) == 1 and {PATH, LABELS} <= set(re.split(r"[;\t|]", names[0])):
        raise ValueError(f"{table} has the columns {names[0]}; {format_hint}")
    try:
        source = open_folder(folder, val_fraction=val_fraction)
    except ValueError as error:
        message = f"{table} has the columns {', '.join(names) or 'none that can be read'}; {format_hint} ({error})"
        raise (NoClasses if isinstance(error, NoClasses) else ValueError)(message) from None
    note = f"not used: {TABLE}, whose columns are {', '.join(names) or 'none that can be read'}; {format_hint}"
    return dataclasses.replace(source, notes=(*source.notes, note))


def _find_imagenet() -> Path:
    """Find ImageNet's folder; its licence forbids redistribution, so it is never downloaded. Raises ValueError if missing."""
    root = data_folder()
    if root and (root / "imagenet").is_dir():
        return root / "imagenet"
    place = f"{root / 'imagenet'}" if root else "FOLDER/imagenet and set VITRAIL_DATA=FOLDER"
    raise ValueError(
        f"imagenet is not on this machine and can't be downloaded; put its train/ and val/, a folder per class, into {place}"
    )

"""From what a user types to a data set: a name, or a folder."""

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
def open_source(path: str, *, val_fraction: float = 0.1, classes: bool = True) -> Source:
    """The data set behind a name or a path; a named set is downloaded if it is nowhere on this machine.

    `val_fraction` of the training images is held out for validation where the set has no validation images. Without
    `classes`, a folder that has none, or images outside of them, is a set too, whose images have label -1.
    Raises ValueError, in one line, for a name or folder that is not there or holds no images.
    """
    if path in NAMED:
        return open_named(path, val_fraction=val_fraction)
    if path == "imagenet":
        return open_folder(_imagenet(), val_fraction=val_fraction)
    folder = Path(path).expanduser()
    if not folder.exists():
        raise ValueError(f'data "{path}" is neither a folder nor one of {", ".join(NAMES)}{nearest(path, list(NAMES))}')
    if classes:
        return _opened(folder, val_fraction=val_fraction)
    if folder.is_dir() and not (folder / TABLE).exists() and has_plain_splits(folder):
        return open_unlabelled(folder, val_fraction=val_fraction)
    try:
        source = _opened(folder, val_fraction=val_fraction)
    except NoClasses:
        return open_unlabelled(folder, val_fraction=val_fraction)
    if isinstance(source, FolderSource) and too_many_outside(source):
        why = f"{source.outside} image{'s' * (source.outside > 1)} outside of class folders: all are used, and none has a class"
        without = open_unlabelled(folder, val_fraction=val_fraction)
        return dataclasses.replace(without, notes=(why, *without.notes))
    return source


def _opened(folder: Path, *, val_fraction: float) -> Source:
    """A folder as its labels.csv has it, or with a folder per class."""
    table = folder / TABLE
    if not table.is_file():
        return open_folder(folder, val_fraction=val_fraction)
    if is_labelled(table):
        return open_labelled(folder, val_fraction=val_fraction)
    seen, wanted = columns(table), f"for several labels an image name two of them {PATH} and {LABELS}, with commas between"
    if len(seen) == 1 and {PATH, LABELS} <= set(re.split(r"[;\t|]", seen[0])):
        raise ValueError(f"{table} has the columns {seen[0]}; {wanted}")
    try:
        source = open_folder(folder, val_fraction=val_fraction)
    except ValueError as error:
        says = f"{table} has the columns {', '.join(seen) or 'none that can be read'}; {wanted} ({error})"
        raise (NoClasses if isinstance(error, NoClasses) else ValueError)(says) from None
    note = f"not used: {TABLE}, whose columns are {', '.join(seen) or 'none that can be read'}; {wanted}"
    return dataclasses.replace(source, notes=(*source.notes, note))


def _imagenet() -> Path:
    """ImageNet's folder; its licence lets nobody pass it on, so it is never downloaded."""
    here = data_folder()
    if here and (here / "imagenet").is_dir():
        return here / "imagenet"
    place = f"{here / 'imagenet'}" if here else "FOLDER/imagenet and set VITRAIL_DATA=FOLDER"
    raise ValueError(
        f"imagenet is not on this machine and can't be downloaded; put its train/ and val/, a folder per class, into {place}"
    )

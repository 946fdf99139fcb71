"""Images to embed, in input order: a folder with or without classes, a named set, one image or a list of paths."""

# C channels · H W image

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.data.decode import BadImage, eval_view
from vitrail.data.files import Listed
from vitrail.data.folder import FolderSource
from vitrail.data.labelled import TABLE, LabelledSource
from vitrail.data.listing import files_under, is_note_name
from vitrail.data.measure import measure_values
from vitrail.data.sources import NAMES, Source, SplitName, open_source
from vitrail.deploy.decoding import View
from vitrail.settings import DataConfig, Preprocessing
from vitrail.text import listed

LIST_SUFFIX = ".txt"
"""Suffix of a file with one path a line."""


@dataclass(frozen=True)
class ImageList:
    """Images by number, with what is known of each; none is decoded before it is read."""

    name: str
    """Name of the data: its path, that of the set, or "" for a list of paths."""
    paths: Sequence[str]
    """Path of each image: relative to the folder, as in the list, or such as "cifar10/test/17"."""
    labels: Sequence[str | None]
    """Class of each image; several labels are joined by ";", None is unknown."""
    read: Callable[[int], View]
    """Number of an image to its evaluation view, or the reason why there is none."""
    fingerprint: str
    """Hash of the paths, and of sizes and times of the files."""
    notes: tuple[str, ...] = ()
    """Assumptions about the data."""

    def __len__(self) -> int:
        return len(self.paths)


def list_images(
    data: str | Path | Sequence[str | Path],
    *,
    split: SplitName | None,
    preprocessing: Preprocessing,
    val_fraction: float = DataConfig().val_fraction,
) -> ImageList:
    """List the images of a folder, a named set, an image file, a list of paths, or a .txt file with one path a line.

    Without `split`, all images: of a folder every file in it and its folders, as for `vitrail predict`. Raises ValueError for
    data that does not exist or has no images, and for a `split` that it does not have.
    """
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        if path.is_dir() or not path.is_file():  # of what does not exist, the source says what there is
            return _of_source(str(data), split, preprocessing, val_fraction)
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.suffix == LIST_SUFFIX else str(data)
        data = [line for line in text.split("\n") if line.strip()]
        if not data:
            raise ValueError(f"{path} names no image; write one path a line")
    if split is not None:
        raise ValueError(f'split "{split}" is for a folder or a named set, and this is a list of images; leave it out')
    if not data:
        raise ValueError("the list of images is empty; name one at least")
    return _of_files("", Path(), [str(path) for path in data], [None] * len(data), preprocessing)


def _of_source(data: str, split: SplitName | None, preprocessing: Preprocessing, val_fraction: float) -> ImageList:
    held_out = val_fraction if split is not None or data not in NAMES else 0.0  # of a whole set nothing is held out
    source = open_source(data, val_fraction=held_out, classes=False)
    if not isinstance(source, FolderSource):
        return _of_set(source, split, preprocessing)
    known = {file.path: file.label for files in source.files.values() for file in files}
    notes = list(source.notes) if split is not None else []
    if split is not None:
        source.check_split(split, channels=preprocessing.in_channels)
        paths = [file.path for file in source.files[split]]
    else:
        files = [file for file in files_under(source.root) if file != TABLE]
        paths = [file for file in files if not is_note_name(file)]
        if len(paths) < len(files):
            some = listed([file for file in files if is_note_name(file)])
            notes.append(f"not used: {len(files) - len(paths)} file{'s' * (len(files) - len(paths) > 1)} of notes ({some})")
    labels = [_label(source, known.get(path, -1)) for path in paths]
    return _of_files(data, source.root, paths, labels, preprocessing, tuple(notes))


def _label(source: FolderSource, label: int) -> str | None:
    """Return the class of a listed file, or its labels; None where it has none."""
    if label < 0:
        return None
    if isinstance(source, LabelledSource):
        return ";".join(source.classes[k] for k in source.multi_hot[label].nonzero()[:, 0].tolist())
    return source.classes[label]


def _of_files(
    name: str,
    root: Path,
    paths: list[str],
    labels: list[str | None],
    preprocessing: Preprocessing,
    notes: tuple[str, ...] = (),
) -> ImageList:
    def read(index: int) -> View:
        try:
            return eval_view(root / paths[index], preprocessing)
        except BadImage as error:
            return str(error)

    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        with contextlib.suppress(OSError):  # a missing file changes the hash by its absence
            status = (root / path).stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
    used = measure_values(root, [Listed(path, 0) for path in paths], threads=-1)
    mismatch = None if used is None else used.mismatch(preprocessing.range)
    return ImageList(name, paths, labels, read, digest.hexdigest(), (*notes, mismatch) if mismatch else notes)


def _of_set(source: Source, split: SplitName | None, preprocessing: Preprocessing) -> ImageList:
    """List a set whose images lie in one file: they are in memory as they are stored."""
    cfg = DataConfig(memory_gb=0.0)  # evaluation views are made when an image is read
    splits = [source.load(one, preprocessing=preprocessing, cfg=cfg) for one in ((split,) if split else source.splits)]
    places = [(images, index) for images in splits for index in range(len(images))]
    paths = [images.names[index] for images, index in places]
    labels = [source.classes[label] for images in splits for label in images.labels.tolist()]

    def read(index: int) -> View:
        images, place = places[index]
        return images.read(torch.tensor([place]))[0].images[0]

    return ImageList(source.name, paths, labels, read, hashlib.sha256("\0".join(paths).encode()).hexdigest())

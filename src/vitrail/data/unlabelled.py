"""Unlabelled folders: images without classes, at any depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitrail.data.dataset import Split, SplitName
from vitrail.data.files import Listed
from vitrail.data.folder import FolderSource, held_out_files, pixels_of
from vitrail.data.listing import files_under, has_folders, is_note_name
from vitrail.data.splits import find_splits

NO_CLASS = -1
"""Label of every image."""
OUTSIDE = 0.01
"""Share of images outside of class folders above which the folders are not read as classes."""
_SHOWN = 3  # files that a note names


@dataclass(frozen=True, kw_only=True)
class UnlabelledSource(FolderSource):
    """Images without classes: `classes` and `class_counts()` are empty."""

    def check_classes(self, images: Split) -> None:
        """Do nothing: there are no classes."""

    def train_images(self) -> int:
        """See Source.train_images."""
        return len(self.files.get("train", ()))


def has_plain_splits(path: Path) -> bool:
    """Return True if a folder has train and another split, both without subfolders; they are not classes then."""
    splits = find_splits(path, in_classes=False).folders.values()
    return len(splits) > 1 and not any(has_folders(path / folder) for folder in splits)


def too_many_outside(source: FolderSource) -> bool:
    """Return True if the share of images outside of class folders exceeds `OUTSIDE`."""
    listed = sum(map(len, source.files.values()))
    return source.outside > OUTSIDE * (listed + source.outside)


def open_unlabelled(path: Path, *, val_fraction: float) -> UnlabelledSource:
    """List a folder at any depth; no image is decoded.

    Folders named train, val and test are splits if there is a train folder, with another split or alone. Without validation
    images, `val_fraction` of the training images is held out, by a hash of each path relative to `path`. Text files
    and tables such as README.md are skipped. Raises ValueError for a folder without images.
    """
    splits = find_splits(path, in_classes=False)
    paths: dict[SplitName, list[str]] = {}
    notes: list[str] = []
    for split, folder in splits.folders.items() or (("train", ""),):
        files = list(files_under(path, folder))
        notes += [file for file in files if is_note_name(file)]
        paths[split] = [file for file in files if not is_note_name(file)]
    if not paths["train"]:
        raise ValueError(f"{path / splits.folders.get('train', '')} holds no images; put some there, in folders or without")
    if not paths.get("val") and val_fraction:
        held_out = held_out_files([(file, {""}) for file in paths["train"]], val_fraction)
        paths["val"] = [file for file in paths["train"] if file in held_out]
        paths["train"] = [file for file in paths["train"] if file not in held_out]
    order: tuple[SplitName, ...] = ("train", "val", "test")
    sides = {split: tuple(Listed(file, NO_CLASS) for file in paths[split]) for split in order if paths.get(split)}
    messages = [str(splits)] if splits.folders and not splits.plain else []
    if notes:
        some = ", ".join(notes[:_SHOWN]) + (", …" if len(notes) > _SHOWN else "")
        messages.append(f"not used: {len(notes)} file{'s' * (len(notes) > 1)} of notes or tables ({some})")
    return UnlabelledSource(
        name=path.resolve().name,
        classes=(),
        img_size=None,
        **pixels_of(path, [file for side in sides.values() for file in side]),
        splits=tuple(sides),
        notes=tuple(messages),
        root=path,
        files=sides,
    )

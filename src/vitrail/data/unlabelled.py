"""A folder of images without classes: loose, or in any tree of folders."""

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
"""Share of images outside of class folders above which the folders are taken for a tree, not for classes."""
_SHOWN = 3  # files that a note names


@dataclass(frozen=True, kw_only=True)
class UnlabelledSource(FolderSource):
    """Images whose folders are no classes. `classes` is empty, and so is what is counted by class."""

    def check_classes(self, images: Split) -> None:
        """See FolderSource.check_classes; there are none."""

    def train_images(self) -> int:
        """See Source.train_images."""
        return len(self.files.get("train", ()))


def has_plain_splits(path: Path) -> bool:
    """Whether a folder has splits, train and another, with images but no folders in them: they are not classes then."""
    splits = find_splits(path, in_classes=False).folders.values()
    return len(splits) > 1 and not any(has_folders(path / folder) for folder in splits)


def too_many_outside(source: FolderSource) -> bool:
    """Whether a folder of classes leaves so many images unused that it is better read without classes."""
    listed = sum(map(len, source.files.values()))
    return source.outside > OUTSIDE * (listed + source.outside)


def open_unlabelled(path: Path, *, val_fraction: float) -> UnlabelledSource:
    """List a folder at any depth; no image is decoded.

    Folders called train, val and test are splits where training images stand beside others, or alone. Else, and where there
    are no validation images, `val_fraction` of the training images is held out, by a hash of each path relative to `path`.
    Notes and tables such as README.md are left out. Raises ValueError for a folder without images.
    """
    splits = find_splits(path, in_classes=False)
    found: dict[SplitName, list[str]] = {}
    notes: list[str] = []
    for split, folder in splits.folders.items() or (("train", ""),):
        files = list(files_under(path, folder))
        notes += [file for file in files if is_note_name(file)]
        found[split] = [file for file in files if not is_note_name(file)]
    if not found["train"]:
        raise ValueError(f"{path / splits.folders.get('train', '')} holds no images; put some there, in folders or without")
    if not found.get("val") and val_fraction:
        held_out = held_out_files([(file, {""}) for file in found["train"]], val_fraction)
        found["val"] = [file for file in found["train"] if file in held_out]
        found["train"] = [file for file in found["train"] if file not in held_out]
    order: tuple[SplitName, ...] = ("train", "val", "test")
    sides = {split: tuple(Listed(file, NO_CLASS) for file in found[split]) for split in order if found.get(split)}
    said = [str(splits)] if splits.folders and not splits.plain else []
    if notes:
        some = ", ".join(notes[:_SHOWN]) + (", …" if len(notes) > _SHOWN else "")
        said.append(f"not used: {len(notes)} file{'s' * (len(notes) > 1)} of notes or tables ({some})")
    return UnlabelledSource(
        name=path.resolve().name,
        classes=(),
        img_size=None,
        **pixels_of(path, [file for side in sides.values() for file in side]),
        splits=tuple(sides),
        notes=tuple(said),
        root=path,
        files=sides,
    )

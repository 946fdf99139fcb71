"""Folder data sets: one folder per class, with or without splits; hash-based splits for folders without."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitrail.data.bands import ValueRange, ValuesInUse
from vitrail.data.dataset import IMAGENET_MEAN, IMAGENET_STD, NoClasses, Source, Split, SplitName, stable_fraction, whole_images
from vitrail.data.decode import BadImage, read_header
from vitrail.data.files import Listed, load_files
from vitrail.data.listing import composed, entries, files_under, folders, is_image_name, loose_files, natural
from vitrail.data.measure import measure_bands, measure_values
from vitrail.data.splits import find_splits
from vitrail.data.subset import fraction_of
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing

TRAIN_SHARE, VAL_SHARE = 0.8, 0.1  # shares of a folder without splits; the rest is test
_PEEK = 32  # headers read to determine channels and bits
_SHOWN = 3  # loose files that a note names


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """A folder with one folder per class, in each split or in all."""

    root: Path
    files: dict[SplitName, tuple[Listed, ...]]
    """Every file in a class folder, image or not."""
    deep: bool = False
    """True if some of the sampled images have more than 8 bits."""
    outside: int = 0
    """Number of images outside of class folders, which are not used."""

    def load(
        self, split: SplitName, *, preprocessing: Preprocessing, cfg: DataConfig, augment: AugmentConfig | None = None
    ) -> Split:
        """See Source.load.

        Also raises ValueError if more than `cfg.max_bad` of the files are unreadable, or all training images of a class.
        """
        self.check_split(split, channels=preprocessing.in_channels)
        whole = whole_images(augment)
        images = load_files(self.root, self.files[split], split=split, preprocessing=preprocessing, cfg=cfg, whole=whole)
        if split == "train":
            self.check_classes(images)
        return images

    def with_fraction(self, fraction: float) -> FolderSource:
        """See Source.with_fraction; unreadable files count."""
        files = self.files.get("train", ())
        kept = fraction_of(torch.tensor([file.label for file in files]), [file.path for file in files], fraction)
        return replace(self, files={**self.files, "train": tuple(files[place] for place in kept.tolist())})

    def check_classes(self, images: Split) -> None:
        """Raise ValueError for a class without a readable training image."""
        listed = {file.label for file in self.files["train"]}
        if lost := sorted(listed - set(images.labels.tolist())):
            bad = next(file.path for file in self.files["train"] if file.label == lost[0])
            reasons = {item.path: item.reason for item in images.skipped}
            why = f" ({bad}: {reasons[bad]})" if bad in reasons else ""
            raise ValueError(
                f'{self.root}: class "{self.classes[lost[0]]}" has no readable training image{why}; add some, or remove it'
            )

    def takes(self, channels: int) -> bool:
        """See Source.takes; colour images also convert to 4 channels, with alpha as the fourth."""
        return super().takes(channels) or (channels, self.channels) == (4, 3)

    def values_in_use(self, *, threads: int) -> ValuesInUse | None:
        """See Source.values_in_use; measured on training images."""
        files = next(iter(self.files.values()))
        return measure_values(self.root, files, threads=threads) if self.deep else None

    def band_statistics(self, *, value_range: ValueRange | None, threads: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """See Source.band_statistics; measured on training images, except for grey and RGB."""
        if self.channels in (1, 3):
            return self.mean, self.std
        files = next(iter(self.files.values()))
        return measure_bands(self.root, files, channels=self.channels, value_range=value_range, threads=threads)

    def class_counts(self) -> tuple[int, ...]:
        """See Source.class_counts; includes unreadable files."""
        counts = Counter(file.label for file in self.files.get("train", ()))
        return tuple(counts[k] for k in range(len(self.classes)))


def open_folder(path: Path, *, val_fraction: float) -> FolderSource:
    """List a folder; no image is decoded.

    Where splits are missing, a file's split is drawn from a hash of its path relative to `path`, so it does not change when
    others are added; every class keeps at least one training image. Raises ValueError for a missing or empty folder and for
    a class name that is not UTF-8; NoClasses if no files are in class folders, if there is only one class, and for a class
    without training images.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give a folder of images or a named set")
    by_split, notes, outside = _list_splits(path)
    if not by_split:
        loose = any(not entry.is_dir() for entry in entries(path))
        what = "its files stand outside of class folders" if loose else "it is empty"
        unlabelled = f", or learn without classes: {pretrain_command(path)}" if loose else ""
        way = f"put the images of each class into a folder of its own{unlabelled}"
        raise (NoClasses if loose else ValueError)(f"{path} has no images in class folders: {what}; {way}")
    names = sorted({name for listed in by_split.values() for _, name in listed}, key=natural)
    for name in names:
        require_utf8(path, name)
    trained = {name for _, name in by_split.get("train", [])} or set(names)
    for split, listed in by_split.items():
        if unknown := sorted({name for _, name in listed} - trained, key=natural):
            raise NoClasses(f'{path}: class "{unknown[0]}" is in {split} but not in train; add images to train or remove it')
    if len(names) < 2:
        way = f"training needs at least two class folders; learn without classes: {pretrain_command(path)}"
        raise NoClasses(f'{path} has one class only, "{names[0]}"; {way}')
    if "train" in by_split and "val" not in by_split and val_fraction:
        held_out = held_out_files([(file, {name}) for file, name in by_split["train"]], val_fraction)
        by_split["val"] = [item for item in by_split["train"] if item[0] in held_out]
        by_split["train"] = [item for item in by_split["train"] if item[0] not in held_out]
    label = {name: k for k, name in enumerate(names)}
    files: dict[SplitName, tuple[Listed, ...]] = {
        split: tuple(Listed(file, label[name]) for file, name in by_split[split])
        for split in ("train", "val", "test")
        if by_split.get(split)
    }
    return FolderSource(
        name=path.resolve().name,
        classes=tuple(names),
        img_size=None,
        **pixels_of(path, [item for side in files.values() for item in side]),
        splits=tuple(files),
        notes=tuple(notes),
        root=path,
        files=files,
        outside=outside,
    )


def pretrain_command(path: Path) -> str:
    """Return the `vitrail pretrain` command for a folder."""
    return f"`vitrail pretrain {shlex.quote(str(path))}`"


def require_utf8(root: Path, name: str) -> None:
    """Raise ValueError for a class name that is not UTF-8, which the files of a run can't store."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"{root}: the name of class folder {shown} is no UTF-8; rename it") from None


def split_without_folders(files: list[tuple[str, set[str]]]) -> dict[str, SplitName]:
    """Assign files, given with their labels, to splits by a hash of their paths.

    For a label without a training image, the file with the smallest hash moves to train.
    """
    sides: dict[str, SplitName] = {}
    for file, _ in files:
        u = stable_fraction(file)
        sides[file] = "train" if u < TRAIN_SHARE else "val" if u < TRAIN_SHARE + VAL_SHARE else "test"
    trained = set().union(*(labels for file, labels in files if sides[file] == "train"))
    for file, labels in sorted(files, key=lambda item: stable_fraction(item[0])):
        if labels - trained:
            sides[file] = "train"
            trained |= labels
    return sides


def held_out_files(files: list[tuple[str, set[str]]], val_fraction: float) -> set[str]:
    """Choose training files, given with their labels, to hold out for validation, by a hash of their paths.

    At least one file of each label stays in train.
    """
    held_out = {file for file, _ in files if stable_fraction(file) < val_fraction}
    kept = set().union(*(labels for file, labels in files if file not in held_out))
    for file, labels in sorted(files, key=lambda item: -stable_fraction(item[0])):
        if file in held_out and labels - kept:
            held_out.remove(file)
            kept |= labels
    return held_out


def pixels_of(root: Path, files: list[Listed]) -> dict[str, Any]:
    """Determine channels, mean, std and `deep` (more than 8 bits) from evenly spaced files; keyword arguments of a source."""
    headers = []
    for file in files[:: max(1, len(files) // _PEEK)][:_PEEK]:
        try:
            headers.append(read_header(root / file.path))
        except BadImage:
            continue
    deep = any(header.bits > 8 for header in headers)
    bands = Counter(header.bands for header in headers)
    if bands.keys() == {1}:
        return {"channels": 1, "mean": (0.449,), "std": (0.226,), "deep": deep}  # the luma of ImageNet's mean and std
    if bands.keys() <= {1, 3}:
        return {"channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "deep": deep}
    channels = max(bands, key=lambda count: (bands[count], count))
    if channels in (1, 3):
        return {"channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "deep": deep}
    return {"channels": channels, "mean": (0.5,) * channels, "std": (0.25,) * channels, "deep": deep}


def _list_splits(root: Path) -> tuple[dict[SplitName, list[tuple[str, str]]], list[str], int]:
    """List (path relative to root, class) of the files in class folders by split; notes; number of images outside."""
    splits, notes = find_splits(root), list[str]()
    by_split: dict[SplitName, list[tuple[str, str]]] = {}
    tops = list(splits.folders.values()) or [""]
    for split, folder in splits.folders.items():
        classes = [(f"{folder}/{name}", composed(name)) for name in folders(root / folder)]
        by_split[split] = _list_classes(root, classes, complete=split == "train")
    if splits.folders and not splits.plain:
        notes.append(str(splits))
    if not splits.folders:
        files = _list_classes(root, [(name, composed(name)) for name in folders(root)], complete=True)
        sides = split_without_folders([(file, {name}) for file, name in files])
        for file, name in files:
            by_split.setdefault(sides[file], []).append((file, name))
    inside = [f"{top}/{name}" if top else name for top in tops for name in loose_files(root / top)]
    if loose := [file for file in inside if is_image_name(file)]:
        some = ", ".join(loose[:_SHOWN]) + (", …" if len(loose) > _SHOWN else "")
        notes.append(f"not used: {len(loose)} image{'s' * (len(loose) > 1)} outside of class folders ({some})")
    return {split: files for split, files in by_split.items() if files}, notes, len(loose)


def _list_classes(root: Path, classes: list[tuple[str, str]], *, complete: bool) -> list[tuple[str, str]]:
    """List (path, class) of the files in class folders. With `complete`, raises ValueError for an empty class folder."""
    files = [(file, name) for folder, name in classes for file in files_under(root, folder)]
    empty = {name for _, name in classes} - {name for _, name in files}
    if complete and empty and files:
        folder = next(folder for folder, name in classes if name in empty)
        raise ValueError(f"{root / folder} holds no files; add images of this class or remove the folder")
    return files

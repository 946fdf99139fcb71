"""A folder of images: which splits and classes it has, and which file stands on which side."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.bands import ValueRange, ValuesInUse
from vitrail.data.dataset import IMAGENET_MEAN, IMAGENET_STD, NoClasses, Source, Split, SplitName, stable_fraction, whole_images
from vitrail.data.decode import BadImage, read_header
from vitrail.data.files import Listed, load_files
from vitrail.data.listing import composed, entries, files_under, folders, is_image_name, loose_files, natural
from vitrail.data.measure import measure_bands, measure_values
from vitrail.data.splits import find_splits
from vitrail.settings import AugmentConfig, DataConfig, Preprocessing

TRAIN_SHARE, VAL_SHARE = 0.8, 0.1  # of a folder without splits; the rest is for the test
_PEEK = 32  # files whose headers say whether a folder is grey
_SHOWN = 3  # loose files that a note names


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """A folder with one folder per class, in each split or in all."""

    root: Path
    files: dict[SplitName, tuple[Listed, ...]]
    """Every file in a class folder, an image or not."""
    deep: bool = False
    """Whether some of the images looked at have more than 8 bits."""
    outside: int = 0
    """Images outside of class folders, which are not used."""

    def load(
        self, split: SplitName, *, preprocessing: Preprocessing, cfg: DataConfig, augment: AugmentConfig | None = None
    ) -> Split:
        """See Source.load.

        Raises ValueError too if more than `cfg.max_bad` of the files can't be read, or all training images of a class.
        """
        self.check_split(split, channels=preprocessing.in_channels)
        whole = whole_images(augment)
        images = load_files(self.root, self.files[split], split=split, preprocessing=preprocessing, cfg=cfg, whole=whole)
        if split == "train":
            self.check_classes(images)
        return images

    def check_classes(self, images: Split) -> None:
        """Raises ValueError for a class none of whose training images can be read."""
        listed = {file.label for file in self.files["train"]}
        if lost := sorted(listed - set(images.labels.tolist())):
            bad = next(file.path for file in self.files["train"] if file.label == lost[0])
            reasons = {item.path: item.reason for item in images.skipped}
            why = f" ({bad}: {reasons[bad]})" if bad in reasons else ""
            raise ValueError(
                f'{self.root}: class "{self.classes[lost[0]]}" has no readable training image{why}; add some, or remove it'
            )

    def takes(self, channels: int) -> bool:
        """See Source.takes; the fourth band of colour images is their opacity."""
        return super().takes(channels) or (channels, self.channels) == (4, 3)

    def values_in_use(self, *, threads: int) -> ValuesInUse | None:
        """See Source.values_in_use; of the training images."""
        files = next(iter(self.files.values()))
        return measure_values(self.root, files, threads=threads) if self.deep else None

    def band_statistics(self, *, value_range: ValueRange | None, threads: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """See Source.band_statistics; of the training images, where the bands are no colours."""
        if self.channels in (1, 3):
            return self.mean, self.std
        files = next(iter(self.files.values()))
        return measure_bands(self.root, files, channels=self.channels, value_range=value_range, threads=threads)

    def class_counts(self) -> tuple[int, ...]:
        """See Source.class_counts; files that turn out to be unreadable are counted."""
        counts = Counter(file.label for file in self.files.get("train", ()))
        return tuple(counts[k] for k in range(len(self.classes)))


def open_folder(path: Path, *, val_fraction: float) -> FolderSource:
    """List a folder; no image is decoded.

    A side is drawn from a hash of the file's path relative to `path`, so it does not change when others are added; but
    every class has at least one training image. Raises ValueError for a folder that is not there, is empty, and for a name
    that is no UTF-8; NoClasses for one that has no files in class folders or one class only, and for a class that only the
    validation or test images have.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give a folder of images or a named set")
    found, notes, outside = _listed(path)
    if not found:
        loose = any(not entry.is_dir() for entry in entries(path))
        what = "its files stand outside of class folders" if loose else "it is empty"
        unlabelled = f", or learn without classes: {pretrain_command(path)}" if loose else ""
        way = f"put the images of each class into a folder of its own{unlabelled}"
        raise (NoClasses if loose else ValueError)(f"{path} has no images in class folders: {what}; {way}")
    names = sorted({name for listed in found.values() for _, name in listed}, key=natural)
    for name in names:
        require_utf8(path, name)
    trained = {name for _, name in found.get("train", [])} or set(names)
    for split, listed in found.items():
        if unknown := sorted({name for _, name in listed} - trained, key=natural):
            raise NoClasses(f'{path}: class "{unknown[0]}" is in {split} but not in train; add images to train or remove it')
    if len(names) < 2:
        way = f"training needs at least two class folders; learn without classes: {pretrain_command(path)}"
        raise NoClasses(f'{path} has one class only, "{names[0]}"; {way}')
    if "train" in found and "val" not in found and val_fraction:
        held_out = held_out_files([(file, {name}) for file, name in found["train"]], val_fraction)
        found["val"] = [item for item in found["train"] if item[0] in held_out]
        found["train"] = [item for item in found["train"] if item[0] not in held_out]
    label = {name: k for k, name in enumerate(names)}
    files: dict[SplitName, tuple[Listed, ...]] = {
        split: tuple(Listed(file, label[name]) for file, name in found[split])
        for split in ("train", "val", "test")
        if found.get(split)
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
    """The command for images without classes."""
    return f"`vitrail pretrain {shlex.quote(str(path))}`"


def require_utf8(root: Path, name: str) -> None:
    """Raises ValueError for the name of a class that can't be written into the run's files."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"{root}: the name of class folder {shown} is no UTF-8; rename it") from None


def split_without_folders(files: list[tuple[str, set[str]]]) -> dict[str, SplitName]:
    """The side of each file, given with its labels, where nothing says it: by a hash of its path.

    A label that would have no training image gets the one whose hash is nearest to that side.
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
    """Training files, given with their labels, to hold out for validation where there is none: by a hash of their paths.

    At least one file of each label stays in training.
    """
    held_out = {file for file, _ in files if stable_fraction(file) < val_fraction}
    kept = set().union(*(labels for file, labels in files if file not in held_out))
    for file, labels in sorted(files, key=lambda item: -stable_fraction(item[0])):
        if file in held_out and labels - kept:
            held_out.remove(file)
            kept |= labels
    return held_out


def pixels_of(root: Path, files: list[Listed]) -> dict[str, Any]:
    """Channels, mean and deviation of images, and whether they have more than 8 bits, judged by some that stand far apart."""
    headers = []
    for file in files[:: max(1, len(files) // _PEEK)][:_PEEK]:
        try:
            headers.append(read_header(root / file.path))
        except BadImage:
            continue
    deep = any(header.bits > 8 for header in headers)
    bands = Counter(header.bands for header in headers)
    if bands.keys() == {1}:
        return {"channels": 1, "mean": (0.449,), "std": (0.226,), "deep": deep}  # the luma of ImageNet's mean and deviation
    if bands.keys() <= {1, 3}:
        return {"channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "deep": deep}
    channels = max(bands, key=lambda count: (bands[count], count))
    if channels in (1, 3):
        return {"channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "deep": deep}
    return {"channels": channels, "mean": (0.5,) * channels, "std": (0.25,) * channels, "deep": deep}


def _listed(root: Path) -> tuple[dict[SplitName, list[tuple[str, str]]], list[str], int]:
    """(path relative to root, class) of every file in a class folder, by split; how the folder was read; images outside."""
    splits, notes = find_splits(root), list[str]()
    found: dict[SplitName, list[tuple[str, str]]] = {}
    tops = list(splits.folders.values()) or [""]
    for split, folder in splits.folders.items():
        classes = [(f"{folder}/{name}", composed(name)) for name in folders(root / folder)]
        found[split] = _in_classes(root, classes, complete=split == "train")
    if splits.folders and not splits.plain:
        notes.append(str(splits))
    if not splits.folders:
        files = _in_classes(root, [(name, composed(name)) for name in folders(root)], complete=True)
        sides = split_without_folders([(file, {name}) for file, name in files])
        for file, name in files:
            found.setdefault(sides[file], []).append((file, name))
    inside = [f"{top}/{name}" if top else name for top in tops for name in loose_files(root / top)]
    if loose := [file for file in inside if is_image_name(file)]:
        some = ", ".join(loose[:_SHOWN]) + (", …" if len(loose) > _SHOWN else "")
        notes.append(f"not used: {len(loose)} image{'s' * (len(loose) > 1)} outside of class folders ({some})")
    return {split: files for split, files in found.items() if files}, notes, len(loose)


def _in_classes(root: Path, classes: list[tuple[str, str]], *, complete: bool) -> list[tuple[str, str]]:
    """(path, class) of the files in class folders. Raises ValueError, if they have to be `complete`, for an empty one."""
    found = [(file, name) for folder, name in classes for file in files_under(root, folder)]
    empty = {name for _, name in classes} - {name for _, name in found}
    if complete and empty and found:
        folder = next(folder for folder, name in classes if name in empty)
        raise ValueError(f"{root / folder} holds no files; add images of this class or remove the folder")
    return found

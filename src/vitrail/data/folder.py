"""A folder of images: which splits and classes it has, and which file stands on which side."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.config import AugmentConfig, DataConfig, Preprocessing
from vitrail.data.dataset import IMAGENET_MEAN, IMAGENET_STD, Source, Split, SplitName, stable_fraction, whole_images
from vitrail.data.decode import GREY_MODES, BadImage, read_header
from vitrail.data.files import Listed, load_files

SPLIT_FOLDERS: dict[str, SplitName] = {"train": "train", "val": "val", "validation": "val", "test": "test"}
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin"}  # and whatever starts with a dot
TRAIN_SHARE, VAL_SHARE = 0.8, 0.1  # of a folder without splits; the rest is for the test
_PEEK = 32  # files whose headers say whether a folder is grey


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """A folder with one folder per class, in each split or in all."""

    root: Path
    files: dict[SplitName, tuple[Listed, ...]]
    """Every file in a class folder, an image or not."""

    def load(
        self, split: SplitName, *, preprocessing: Preprocessing, cfg: DataConfig, augment: AugmentConfig | None = None
    ) -> Split:
        """See Source.load. Raises ValueError too if more than `cfg.max_bad` of the files can't be read."""
        self.check_split(split, channels=preprocessing.in_channels)
        whole = whole_images(augment)
        return load_files(self.root, self.files[split], split=split, preprocessing=preprocessing, cfg=cfg, whole=whole)

    def class_counts(self) -> tuple[int, ...]:
        """See Source.class_counts; files that turn out to be unreadable are counted."""
        counts = Counter(file.label for file in self.files.get("train", ()))
        return tuple(counts[k] for k in range(len(self.classes)))


def open_folder(path: Path, *, val_fraction: float) -> FolderSource:
    """Lists a folder; no image is decoded.

    A side is drawn from a hash of the file's path relative to `path`, so it does not change when others are added.
    Raises ValueError for a folder that is not there, has no files in class folders or one class only, and for a
    class that only the validation or test images have.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder; give a folder of images or a named set")
    found = _listed(path)
    if not found:
        loose = any(_is_of_interest(entry.name) and entry.is_file() for entry in path.iterdir())
        what = "its files stand outside of class folders" if loose else "it is empty"
        raise ValueError(
            f"{path} has no images in class folders: {what}; put the images of each class into a folder of its own"
        )
    names = sorted({name for listed in found.values() for _, name in listed}, key=natural)
    taught = {name for _, name in found.get("train", [])} or set(names)
    for split, listed in found.items():
        if unknown := sorted({name for _, name in listed} - taught, key=natural):
            raise ValueError(f'{path}: class "{unknown[0]}" is in {split} but not in train; add images to train or remove it')
    if len(names) < 2:
        raise ValueError(f'{path} has one class only, "{names[0]}"; training needs at least two class folders')
    if "train" in found and "val" not in found and val_fraction:
        sides = [is_held_out(file, val_fraction) for file, _ in found["train"]]
        found["val"] = [item for item, held_out in zip(found["train"], sides, strict=True) if held_out]
        found["train"] = [item for item, held_out in zip(found["train"], sides, strict=True) if not held_out]
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
        root=path,
        files=files,
    )


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts "class2" before "class10"."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part] + [(2, 0, name)]


def side_of(file: str) -> SplitName:
    """The side that a file stands on where nothing says it: a hash of its path."""
    u = stable_fraction(file)
    return "train" if u < TRAIN_SHARE else "val" if u < TRAIN_SHARE + VAL_SHARE else "test"


def is_held_out(file: str, val_fraction: float) -> bool:
    """Whether a training image is one for validation where there are none."""
    return stable_fraction(file) < val_fraction


def pixels_of(root: Path, files: list[Listed]) -> dict[str, Any]:
    """Channels, mean and deviation of photographs, all grey or not."""
    if _is_grey(root, files):
        return {"channels": 1, "mean": (0.449,), "std": (0.226,)}  # the luma of ImageNet's mean and deviation
    return {"channels": 3, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def _listed(root: Path) -> dict[SplitName, list[tuple[str, str]]]:
    """(path relative to root, class) of every file in a class folder, by split."""
    folders = {entry.name: entry for entry in _entries(root) if entry.is_dir()}
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in SPLIT_FOLDERS}
    splits = {name: split for name, split in splits.items() if any(entry.is_dir() for entry in _entries(root / name))}
    found: dict[SplitName, list[tuple[str, str]]] = {}
    if splits:  # a folder "train" without folders in it is a class: pictures of trains
        for name, split in sorted(splits.items()):
            if split in found:
                raise ValueError(f"{root} has two folders of {split} images, {' and '.join(sorted(splits))}; keep one")
            classes = [entry.name for entry in _entries(root / name) if entry.is_dir()]
            found[split] = [(file, k) for k in classes for file in _files(root, f"{name}/{k}")]
            if split == "train" and (empty := set(classes) - {k for _, k in found[split]}) and found[split]:
                raise ValueError(f"{root / name / min(empty)} holds no files; add images of this class or remove the folder")
    else:
        for name in folders:
            for file in _files(root, name):
                found.setdefault(side_of(file), []).append((file, name))
    return {split: files for split, files in found.items() if files}


def _files(root: Path, folder: str) -> Iterator[str]:
    """Paths relative to root of the files under a folder, at any depth, sorted; links are followed, but never in a ring."""
    seen: set[tuple[int, int]] = set()

    def walk(folder: str) -> Iterator[str]:
        status = (root / folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(root / folder):
            path = f"{folder}/{entry.name}"
            if entry.is_dir():
                yield from walk(path)
            else:
                yield path

    return walk(folder)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if _is_of_interest(entry.name)), key=lambda entry: natural(entry.name))


def _is_of_interest(name: str) -> bool:
    """Whether a file or folder is none of those that systems leave about."""
    return not name.startswith(".") and name.lower() not in LITTER


def _is_grey(root: Path, files: list[Listed]) -> bool:
    """Whether the images are grey, judged by some that stand far apart."""
    modes = set()
    for file in files[:: max(1, len(files) // _PEEK)][:_PEEK]:
        try:
            modes.add(read_header(root / file.path).mode)
        except BadImage:
            continue
    return bool(modes) and modes <= set(GREY_MODES)

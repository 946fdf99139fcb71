"""Recognise the splits of a data set by the names of its folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.data.dataset import NoClasses, SplitName
from vitrail.data.listing import entries, folders, has_folders, is_image_name, loose_files, unsorted_entries

STRONG: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Names that are splits on their own."""
WEAK: dict[str, SplitName] = dict.fromkeys(("dev", "devel", "development", "eval", "evaluation", "holdout"), "val")
"""Names that are splits only next to a train folder: val, or test if there is another val."""
_NOISE = frozenset(
    (
        "set",
        "sets",
        "split",
        "splits",
        "data",
        "dataset",
        "images",
        "image",
        "imgs",
        "img",
        "photos",
        "photo",
        "pictures",
        "pics",
        "seg",
        "segmentation",
        "folder",
        "px",
        "x",
    )
)
_GLUED = re.compile(r"(set|data|images|imgs|img)$")


def split_of(name: str) -> SplitName | None:
    """Return the split that a name denotes, ignoring case: "Training", "val2017", "seg_test"; None for any other name."""
    word = _bare_word(name)
    return STRONG.get(word) or WEAK.get(word)


@dataclass(frozen=True)
class SplitFolders:
    """Folders of a data set that are its splits."""

    folders: dict[SplitName, str]
    """Path of each split's folder, relative to the root; empty without splits."""
    unused: tuple[str, ...]
    """Other folders, which are not used."""

    @property
    def plain(self) -> bool:
        """True if the folders have the names of the splits, and there are no others."""
        return not self.unused and all(folder.lower() in (split, "validation") for split, folder in self.folders.items())

    def __str__(self) -> str:
        serves = ", ".join(f"{folder}/ is {split}" for split, folder in self.folders.items())
        return serves + (f"; not used: {', '.join(f'{name}/' for name in self.unused)}" if self.unused else "")


def find_splits(root: Path, *, in_classes: bool = True) -> SplitFolders:
    """Find the folders that serve as splits.

    With `in_classes`, a folder without subfolders is a class, not a split: "train" may hold images of trains. Without, any
    folder may be a split, but splits count only if there is a train folder, with another split or alone. Raises ValueError
    for two folders of one split, and for splits inside of class folders.
    """
    names = folders(root)
    with_folders = [name for name in names if not in_classes or has_folders(root / name)]
    strong = {name: STRONG[_bare_word(name)] for name in with_folders if _bare_word(name) in STRONG}
    weak = (
        {name: WEAK[_bare_word(name)] for name in with_folders if _bare_word(name) in WEAK}
        if "train" in strong.values()
        else {}
    )
    if not strong:
        strong = _match_affix(with_folders)
    if not in_classes and not ("train" in strong.values() and (len(strong) + len(weak) > 1 or len(names) == 1)):
        return SplitFolders({}, ())
    if not strong:
        _refuse_splits_inside(root, names, with_folders)
        return SplitFolders({}, ())
    by_split: dict[SplitName, str] = {}
    for name, split in {**strong, **weak}.items():
        if split == "val" and split in by_split and name in weak and "test" not in by_split:
            split = "test"
        if split in by_split:
            raise ValueError(
                f"{root} has two folders of {split} images, {by_split[split]} and {name}; keep one, or move the other elsewhere"
            )
        by_split[split] = name
    unused = tuple(name for name in names if name not in by_split.values())
    order: tuple[SplitName, ...] = ("train", "val", "test")
    return SplitFolders({split: _descend(root, by_split[split], split) for split in order if split in by_split}, unused)


def _bare_word(name: str) -> str:
    """Normalise a name: no case, no digits, no words such as "set"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    tokens = re.findall(r"[^\W\d_]+", spaced)
    word = "".join(token for token in tokens if token not in _NOISE)
    return _GLUED.sub("", word)


def _match_affix(names: Sequence[str]) -> dict[str, SplitName]:
    """Match names that differ only in the split: "flowers_train" and "flowers_test"."""
    groups: dict[tuple[str, ...], dict[str, SplitName]] = {}
    for name in names:
        tokens = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        words = [token for token in tokens if token in STRONG]
        if len(words) == 1:
            rest = tuple(token for token in tokens if token not in STRONG)
            groups.setdefault(rest, {})[name] = STRONG[words[0]]
    whole = [group for group in groups.values() if len(group) > 1 and "train" in group.values()]
    return whole[0] if len(whole) == 1 else {}


def _descend(root: Path, name: str, split: SplitName) -> str:
    """Return the inner folder if a split's folder contains only a folder of the same split, as some archives unpack."""
    while any(split_of(entry.name) == split for entry in unsorted_entries(root / name)):
        inside = entries(root / name)
        if len(inside) != 1 or not inside[0].is_dir() or not has_folders(Path(inside[0].path)):
            break
        name = f"{name}/{inside[0].name}"
    return name


def _refuse_splits_inside(root: Path, names: Sequence[str], with_folders: Sequence[str]) -> None:
    """Raise ValueError for the parent folder of a data set, and for splits inside of class folders."""
    for name in with_folders:
        inside = (entry.name for entry in unsorted_entries(root / name) if entry.is_dir())
        words = {split: word for word in inside if (split := STRONG.get(_bare_word(word)))}
        if "train" not in words:
            continue
        if has_folders(root / name / words["train"]):
            raise ValueError(
                f"{root} has no splits or classes itself, but {name}/{words['train']} has; did you mean {root / name}?"
            )
        if len(words) > 1:
            raise ValueError(
                f"{root / name} holds splits ({', '.join(sorted(words.values()))}); put them outside of the class folders, "
                f"as in {words['train']}/{name}"
            )
    if len(names) == 1 and len(folders(root / names[0])) > 1 and not any(map(is_image_name, loose_files(root / names[0]))):
        raise NoClasses(f"{root} holds one folder, {names[0]}, and the classes are in that; did you mean {root / names[0]}?")

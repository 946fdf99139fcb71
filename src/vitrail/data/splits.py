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
"""Names of splits by themselves."""
WEAK: dict[str, SplitName] = dict.fromkeys(("dev", "devel", "development", "eval", "evaluation", "holdout"), "val")
"""Names of splits where a folder of training images stands beside them; of the test images where there is another val."""
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
    """The split that a name stands for, in any case: "Training", "val2017", "seg_test"; None for another name."""
    word = _word(name)
    return STRONG.get(word) or WEAK.get(word)


@dataclass(frozen=True)
class SplitFolders:
    """Folders of a data set that serve as splits."""

    folders: dict[SplitName, str]
    """Path of each split's folder, relative to the set's; empty for a set without splits."""
    unused: tuple[str, ...]
    """Folders beside them, which are not used."""

    @property
    def plain(self) -> bool:
        """Whether the folders are called as the splits are, and there is no other."""
        return not self.unused and all(folder.lower() in (split, "validation") for split, folder in self.folders.items())

    def __str__(self) -> str:
        serves = ", ".join(f"{folder}/ is {split}" for split, folder in self.folders.items())
        return serves + (f"; not used: {', '.join(f'{name}/' for name in self.unused)}" if self.unused else "")


def find_splits(root: Path, *, in_classes: bool = True) -> SplitFolders:
    """Find the folders that serve as splits.

    With `in_classes`, a folder without folders in it is no split but a class: pictures of trains. Without, any folder may be
    one, but only one of training images that stands beside another split, or alone. Raises ValueError for two folders of one
    split, and where the splits stand inside of class folders.
    """
    names = folders(root)
    with_folders = [name for name in names if not in_classes or has_folders(root / name)]
    strong = {name: STRONG[_word(name)] for name in with_folders if _word(name) in STRONG}
    weak = {name: WEAK[_word(name)] for name in with_folders if _word(name) in WEAK} if "train" in strong.values() else {}
    if not strong:
        strong = _with_one_affix(with_folders)
    if not in_classes and not ("train" in strong.values() and (len(strong) + len(weak) > 1 or len(names) == 1)):
        return SplitFolders({}, ())
    if not strong:
        _refuse_splits_inside(root, names, with_folders)
        return SplitFolders({}, ())
    found: dict[SplitName, str] = {}
    for name, split in {**strong, **weak}.items():
        if split == "val" and split in found and name in weak and "test" not in found:
            split = "test"
        if split in found:
            raise ValueError(
                f"{root} has two folders of {split} images, {found[split]} and {name}; keep one, or move the other elsewhere"
            )
        found[split] = name
    unused = tuple(name for name in names if name not in found.values())
    order: tuple[SplitName, ...] = ("train", "val", "test")
    return SplitFolders({split: _unnested(root, found[split], split) for split in order if split in found}, unused)


def _word(name: str) -> str:
    """A name without case, digits and words such as "set"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    tokens = re.findall(r"[^\W\d_]+", spaced)
    word = "".join(token for token in tokens if token not in _NOISE)
    return _GLUED.sub("", word)


def _with_one_affix(names: Sequence[str]) -> dict[str, SplitName]:
    """Splits of names that differ in nothing else: "flowers_train" beside "flowers_test"."""
    groups: dict[tuple[str, ...], dict[str, SplitName]] = {}
    for name in names:
        tokens = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        words = [token for token in tokens if token in STRONG]
        if len(words) == 1:
            rest = tuple(token for token in tokens if token not in STRONG)
            groups.setdefault(rest, {})[name] = STRONG[words[0]]
    whole = [group for group in groups.values() if len(group) > 1 and "train" in group.values()]
    return whole[0] if len(whole) == 1 else {}


def _unnested(root: Path, name: str, split: SplitName) -> str:
    """The folder inside, where a split's folder holds nothing but one of the same name, as archives unpack."""
    while any(split_of(entry.name) == split for entry in unsorted_entries(root / name)):
        inside = entries(root / name)
        if len(inside) != 1 or not inside[0].is_dir() or not has_folders(Path(inside[0].path)):
            break
        name = f"{name}/{inside[0].name}"
    return name


def _refuse_splits_inside(root: Path, names: Sequence[str], with_folders: Sequence[str]) -> None:
    """Raises ValueError for a folder above the set's own, and for splits inside of class folders."""
    for name in with_folders:
        inside = (entry.name for entry in unsorted_entries(root / name) if entry.is_dir())
        words = {split: word for word in inside if (split := STRONG.get(_word(word)))}
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

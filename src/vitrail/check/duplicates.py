"""Groups of equal or nearly equal images, and what follows: copies, leakage between splits, one image under two labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vitrail.check.finding import DataFinding
from vitrail.check.image_set import ListedImage
from vitrail.check.scan import Scan, sampled_key
from vitrail.data.dataset import SplitName
from vitrail.data.decode import BadImage
from vitrail.data.files import map_files

_JPEGS = ("JPEG", "MPO")
_KEEP: tuple[SplitName, ...] = ("test", "val", "train")  # images of the first of these splits stay where they are
_NAMED = 2  # other images that the evidence names


class Group(NamedTuple):
    """Images that show the same picture, by position in the scan's records."""

    members: tuple[int, ...]
    evidence: str
    """Common property, in words."""
    score: float | None = None
    """Correlation or similarity; None for equal pixels."""

    @property
    def exact(self) -> bool:
        """True for equal pixels."""
        return self.score is None


class Sets:
    """Disjoint sets of numbers, which unite (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, one: int) -> int:
        """Return the least number of a number's set."""
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def unite(self, members: Iterable[int]) -> None:
        """Unite the sets of some numbers."""
        roots = {self.find(one) for one in members}
        for root in roots:
            self._parent[root] = min(roots)

    def groups(self) -> list[tuple[int, ...]]:
        """Return the sets of two numbers and more, in order."""
        members: defaultdict[int, list[int]] = defaultdict(list)
        for one in range(len(self._parent)):
            members[self.find(one)].append(one)
        return [tuple(group) for group in members.values() if len(group) > 1]


def find_exact_groups(scan: Scan, *, threads: int = -1) -> list[Group]:
    """Find groups of images with equal pixels.

    Images of one size whose sampled pixels are equal are compared by a hash of the file, and where the files differ by a hash
    of all pixels. A JPEG was sampled at a smaller scale: it is decoded once more where a file of another format has its size.
    """
    keyed: defaultdict[object, list[int]] = defaultdict(list)
    for at, record in enumerate(scan.records):
        keyed[record.header.size, record.header.format in _JPEGS, record.key].append(at)
    candidates = [group for group in keyed.values() if len(group) > 1] + _same_across_formats(scan, threads)
    files = _hash_all(scan, {at for group in candidates for at in group}, scan.images.hash_file, threads)
    different = []
    sets = Sets(len(scan.records))
    for group in candidates:
        copies = _by_value(group, files)
        for same in copies:
            sets.unite(same)
        if len(copies) > 1:
            different.append([same[0] for same in copies])
    pixels = _hash_all(scan, {at for group in different for at in group}, scan.images.hash_pixels, threads)
    for group in different:
        for same in _by_value(group, pixels):
            sets.unite(same)
    return [Group(members, "equal pixels") for members in sets.groups()]


def _same_across_formats(scan: Scan, threads: int) -> list[list[int]]:
    """Find JPEGs and files of other formats whose pixels, sampled at full size, are equal."""
    sizes = {record.header.size for record in scan.records if record.header.format not in _JPEGS}
    jpegs = [at for at, r in enumerate(scan.records) if r.header.format in _JPEGS and r.header.size in sizes]
    if not jpegs:
        return []

    def key(index: int) -> bytes:
        return sampled_key(scan.images.decode(index, short_side=None))

    keys = _hash_all(scan, set(jpegs), key, threads)
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for at, record in enumerate(scan.records):
        if record.header.format not in _JPEGS:
            groups[record.header.size, record.key].append(at)
        elif at in keys:
            groups[record.header.size, keys[at]].append(at)
    formats = [{scan.records[at].header.format in _JPEGS for at in group} for group in groups.values()]
    return [group for group, kinds in zip(groups.values(), formats, strict=True) if len(kinds) > 1]


def _hash_all(scan: Scan, positions: set[int], work: Callable[[int], bytes], threads: int) -> dict[int, bytes]:
    """Apply `work` to some images; those that can't be read any more are left out."""

    def hashed(at: int) -> bytes | None:
        try:
            return work(scan.records[at].number)
        except (BadImage, OSError):
            return None

    order = sorted(positions)
    results = map_files(hashed, order, threads=threads, doing="comparing copies")
    return {at: value for at, value in zip(order, results, strict=True) if value is not None}


def _by_value(group: Sequence[int], values: Mapping[int, bytes]) -> list[list[int]]:
    """Split a group by the value of its members; those without one are left out."""
    parts: defaultdict[bytes, list[int]] = defaultdict(list)
    for at in group:
        if at in values:
            parts[values[at]].append(at)
    return list(parts.values())


# --------------------------------------------------------------------------------------------------------------------
# Findings


def find_copies(groups: Sequence[Group], images: Sequence[ListedImage], classes: Sequence[str]) -> Iterator[DataFinding]:
    """Yield leakage, contradictory labels and duplicates of groups. `images` are those of the records."""
    for group in groups:
        members = [images[at] for at in group.members]
        yield from _leakage(group, members)
        yield from _two_labels(group, members, classes)
        yield from _copies(group, members)


def _leakage(group: Group, members: Sequence[ListedImage]) -> Iterator[DataFinding]:
    splits = {image.split for image in members}
    if len(splits) == 1:
        return
    stays = next(split for split in _KEEP if split in splits)
    inside, others = [i for i in members if i.split == stays], [i for i in members if i.split != stays]
    yield DataFinding(
        kind="leakage",
        paths=tuple(image.path for image in others),
        beside=tuple(image.path for image in inside),
        evidence=f"{group.evidence}: {_names(others)} in {_listed_splits(others)}, {_names(inside)} in {stays}",
        suggestion=f"take it out of {_listed_splits(others)}",
        score=group.score,
    )


def _two_labels(group: Group, members: Sequence[ListedImage], classes: Sequence[str]) -> Iterator[DataFinding]:
    labels = {image.labels for image in members}
    if len(labels) == 1:
        return
    names = " and ".join(sorted(f'"{label_text(each, classes)}"' for each in labels))
    yield DataFinding(
        kind="two-labels",
        paths=tuple(image.path for image in members),
        evidence=f"{group.evidence}: labels {names}",
        score=group.score,
    )


def _copies(group: Group, members: Sequence[ListedImage]) -> Iterator[DataFinding]:
    """Yield a finding for each split in which a group has several images of the same labels."""
    alike: defaultdict[object, list[ListedImage]] = defaultdict(list)
    for image in members:
        alike[image.split, image.labels].append(image)
    for first, *copies in alike.values():
        if copies:
            yield DataFinding(
                kind="exact-duplicate" if group.exact else "near-duplicate",
                paths=tuple(image.path for image in copies),
                beside=(first.path,),
                evidence=f"{group.evidence}: {_names(copies)}, {first.path}",
                score=group.score,
            )


def label_text(labels: Sequence[int], classes: Sequence[str]) -> str:
    """Return the label of an image in words: several are joined by ";"."""
    return ";".join(classes[label] for label in labels)


def _names(images: Sequence[ListedImage]) -> str:
    more = f" and {len(images) - _NAMED} more" if len(images) > _NAMED else ""
    return ", ".join(image.path for image in images[:_NAMED]) + more


def _listed_splits(images: Sequence[ListedImage]) -> str:
    return " and ".join(split for split in reversed(_KEEP) if any(image.split == split for image in images))

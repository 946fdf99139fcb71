"""Images of each class and split, and what is wrong with their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from vitrail.check.finding import DataFinding
from vitrail.data.dataset import Source, SplitName

FEWEST_TRAIN = 10
"""Number of training images below which a class is too small."""
IMBALANCE = 10.0
"""Ratio of the largest to the smallest class from which the classes are out of balance."""

ClassCounts = dict[SplitName, dict[str, int]]


def count_classes(source: Source, images: Sequence[tuple[SplitName, tuple[int, ...]]]) -> ClassCounts:
    """Count the images of each class, by split; classes without images count 0, an image counts for each of its labels."""
    counted = Counter((split, label) for split, labels in images for label in labels)
    return {split: {name: counted[split, k] for k, name in enumerate(source.classes)} for split in source.splits}


def find_class_faults(counts: Mapping[SplitName, Mapping[str, int]], *, noun: str = "class") -> Iterator[DataFinding]:
    """Yield classes that are too small to be trained or scored, and a finding for unequal sizes."""
    train = counts.get("train", {})
    for name, images in train.items():
        empty = [split for split in counts if split != "train" and counts[split][name] == 0]
        why = [f"{images} training image{'s' * (images != 1)}"] if images < FEWEST_TRAIN else []
        why += [f"no image in {' and '.join(empty)}, so it is not scored there"] if empty else []
        if why:
            yield DataFinding(kind="small-class", evidence=f'{noun} "{name}": {"; ".join(why)}')
    sizes = {name: images for name, images in train.items() if images}
    if len(sizes) > 1:
        largest, smallest = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
        ratio = sizes[largest] / sizes[smallest]
        if ratio >= IMBALANCE:
            evidence = f'"{largest}" has {sizes[largest]} training images, "{smallest}" {sizes[smallest]}: {ratio:.0f} to 1'
            yield DataFinding(kind="imbalance", evidence=evidence, score=ratio)

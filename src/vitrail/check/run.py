"""Check a data set: one pass over its images, and with weights one pass of a model."""

# N images

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vitrail.check.appearance import find_empty_appearance
from vitrail.check.classes import count_classes, find_class_faults
from vitrail.check.colours import find_colour_faults, measure_colours
from vitrail.check.duplicates import Group, Sets, find_copies, find_exact_groups
from vitrail.check.features import (
    SetEmbeddings,
    close_pairs,
    embed_all,
    find_label_suspects,
    find_unlike_others,
)
from vitrail.check.file_faults import find_odd_bands, find_odd_sizes, find_unreadable, find_wrong_extensions
from vitrail.check.finding import KINDS, DataFinding
from vitrail.check.image_set import list_images
from vitrail.check.near_duplicates import find_near_duplicates
from vitrail.check.result import CheckedData
from vitrail.check.scan import Scan, scan
from vitrail.data.bands import merge_ranges
from vitrail.data.sources import NoClasses, Source, open_source
from vitrail.evaluate.run import is_run
from vitrail.settings import layers
from vitrail.text import printable_errors
from vitrail.weights.run_folder import SETTINGS

_MOST_NEIGHBOURS = 3  # that the evidence of a label suspect names


@printable_errors()
def check(
    data: str | Path,
    *,
    weights: str | Path | None = None,
    exact_only: bool = False,
    val_fraction: float | None = None,
    batch_size: int = 64,
    device: str = "auto",
    threads: int = -1,
) -> CheckedData:
    """Check a folder or a named set, with classes, any number of labels or none. Nothing is written, moved or deleted.

    Every image is decoded once. `weights`, a run or any checkpoint, add what its features say: near duplicates, label suspects
    and images unlike all others. With `exact_only` images are not compared beyond equal pixels, nor measured. `val_fraction` of
    the training images counts as validation images where there are none; by default that of the run, else of the settings.
    Raises ValueError for data that does not exist or has no images, and for weights that do not load.
    """
    if val_fraction is None:
        is_ours = weights is not None and is_run(weights)
        val_fraction = layers.build([layers.read_config(Path(str(weights), SETTINGS))] if is_ours else []).data.val_fraction
    source, notes = open_any(str(data), val_fraction)
    images = list_images(source)
    scanned = scan(images, exact_only=exact_only, threads=threads)
    exact = find_exact_groups(scanned, threads=threads)
    features = None if weights is None else embed_all(weights, source, batch_size=batch_size, device=device)
    near = [] if exact_only else near_groups(scanned, exact, {} if features is None else close_pairs(features))
    listed = [record.image for record in scanned.records]
    colours = measure_colours(scanned.moments, source)
    values = {
        split: used
        for split in source.splits
        if (used := merge_ranges(record.values for record in scanned.records if record.image.split == split))
    }
    counts = count_classes(source, [(image.split, image.labels) for image in listed])

    def find_all() -> Iterator[DataFinding]:
        yield from find_unreadable(scanned.unreadable)
        yield from find_wrong_extensions(scanned.records)
        yield from find_odd_bands(scanned.records, source)
        yield from find_odd_sizes(scanned.records)
        yield from find_class_faults(counts, noun="label" if source.multi_label else "class")
        yield from find_colour_faults(colours, dict(values))
        yield from find_copies([*exact, *near], listed, source.classes)
        yield from find_empty_appearance(scanned)
        if features is not None:
            yield from find_by_neighbours(features, scanned, source, [*exact, *near])

    order = list(KINDS)
    total = Counter(image.split for image in listed)
    return CheckedData(
        name=source.name,
        counts=counts,
        totals={split: total[split] for split in source.splits},
        labels=dict(sorted(Counter(len(image.labels) for image in listed).items())) if source.multi_label else None,
        sizes=dict(Counter(record.header.size for record in scanned.records)),
        modes=dict(Counter(record.header.mode for record in scanned.records)),
        formats=dict(Counter(record.header.format for record in scanned.records if record.header.format)),
        colours=colours,
        values=values,
        findings=tuple(sorted(find_all(), key=lambda finding: (order.index(finding.kind), -(finding.score or 0)))),
        left_out=tuple(parts_left_out(source, scanned, exact_only=exact_only, with_features=features is not None)),
        notes=(*source.notes, *notes, *(() if features is None else features.notes)),
    )


def open_any(data: str, val_fraction: float) -> tuple[Source, tuple[str, ...]]:
    """Open data with classes, or else without; return it and a note for the latter."""
    try:
        return open_source(data, val_fraction=val_fraction), ()
    except NoClasses as error:
        return open_source(data, val_fraction=val_fraction, classes=False), (f"without classes: {error}",)


def near_groups(scanned: Scan, exact: Sequence[Group], close: Mapping[tuple[str, str], float]) -> list[Group]:
    """Group near duplicates by their thumbnails, with the exact copies of their images; of equal images one is compared.

    Pairs that the thumbnails alone do not prove count where the features are close too (`close_pairs`).
    """
    assert scanned.luminance is not None
    assert scanned.colour is not None
    copies = {at for group in exact for at in group.members[1:]}
    kept = np.array([at for at in range(len(scanned.records)) if at not in copies], np.int64)
    sets, pairs = Sets(len(scanned.records)), list[tuple[int, float, str]]()
    for pair in find_near_duplicates(scanned.luminance[kept], scanned.colour[kept]):
        first, second = int(kept[pair.first]), int(kept[pair.second])
        one, other = sorted((scanned.records[first].image.path, scanned.records[second].image.path))
        similarity = close.get((one, other))
        if pair.sure or similarity is not None:
            sets.unite((first, second))
            words = [f"correlation {1 - pair.residual:.4f}", pair.how]
            words += [f"similarity of features {similarity:.4f}"] if similarity is not None else []
            pairs.append((first, 1 - pair.residual, ", ".join(word for word in words if word)))
    strongest: dict[int, tuple[str, float]] = {}
    for first, score, evidence in pairs:  # from the strongest on
        strongest.setdefault(sets.find(first), (evidence, score))
    of = {group.members[0]: group.members for group in exact}
    return [
        Group(tuple(sorted(copy for at in members for copy in of.get(at, (at,)))), *strongest[members[0]])
        for members in sets.groups()
    ]


def find_by_neighbours(
    features: SetEmbeddings, scanned: Scan, source: Source, groups: Sequence[Group]
) -> Iterator[DataFinding]:
    """Yield label suspects, for one class an image, and images unlike all others."""
    if len(features.paths) < 3:
        return
    image = {record.image.path: record.image for record in scanned.records}
    position = {record.image.path: at for at, record in enumerate(scanned.records)}
    together = Sets(len(scanned.records))
    for group in groups:
        together.unite(group.members)
    if source.classes and not source.multi_label:
        labels = np.array([image[path].labels[0] for path in features.paths], np.int64)
        same = [together.find(position[path]) for path in features.paths]
        for suspect in find_label_suspects(features, labels, same, len(source.classes)):
            nearest = tuple(features.paths[at] for at in suspect.neighbours[:_MOST_NEIGHBOURS])
            given, suggested = source.classes[suspect.label], source.classes[suspect.suggested]
            votes = f'{100 * suspect.share:.0f} % of its neighbours are "{suggested}"'
            votes += f" (as many are right in {100 * suspect.agreement:.0f} %)"
            yield DataFinding(
                kind="label-suspect",
                paths=(features.paths[suspect.number],),
                beside=nearest,
                evidence=f'label "{given}"; {votes}: {", ".join(nearest)}',
                suggestion=f'look whether it is "{suggested}"',
                score=suspect.score,
            )
    for unlike in find_unlike_others(features):
        yield DataFinding(
            kind="unlike-others",
            paths=(features.paths[unlike.number],),
            evidence=f"distance {unlike.distance:.3f} to the tenth nearest image; the median is {unlike.typical:.3f}",
            score=unlike.deviations,
        )


def parts_left_out(source: Source, scanned: Scan, *, exact_only: bool, with_features: bool) -> Iterator[str]:
    """Yield a line for each part that does not apply, with the reason."""
    if exact_only:
        yield "near duplicates, colours, blank, dark and blurred images: not with --exact"
    elif not any(record.blur is not None for record in scanned.records):
        yield "blurred images: there is no image of 64 px and more with 8 bits"
    if len(source.splits) < 2:
        yield f"leakage: there is one split, {source.splits[0]}"
    if not source.classes:
        yield "classes and labels: the images have none"
    if not any(record.header.format for record in scanned.records) and not scanned.unreadable:
        yield "corrupt files and extensions: the images are not in files of their own"
    if not with_features:
        yield "label suspects, images unlike all others, near duplicates confirmed by features: give --weights"
    elif source.multi_label:
        yield "label suspects: neighbours vote for one class, and these images have any number of labels"
    elif not source.classes:
        yield "label suspects: the images have no classes"

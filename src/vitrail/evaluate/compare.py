"""Compare runs on the same images: accuracies, paired differences to the first one, and groups of seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vitrail.data.dataset import SplitName
from vitrail.evaluate.evaluate import SplitLogits, compute_logits
from vitrail.evaluate.intervals import Accuracy, Interval, mean_interval
from vitrail.evaluate.paired import GroupDifference, Paired, compare_groups, compare_pair
from vitrail.evaluate.run import is_run, open_data, open_run
from vitrail.evaluate.trust import finite, measure_trust
from vitrail.settings import layers
from vitrail.weights.run_folder import SETTINGS


@dataclass(frozen=True)
class ComparedRun:
    """One run on the images of the comparison."""

    run: str
    accuracy: Accuracy
    calibration_error: float
    """Expected calibration error of its probabilities."""
    to_first: Paired | None
    """Difference to the first run; None for the first itself."""


@dataclass(frozen=True)
class SeedGroup:
    """Runs with the same settings but for the seed."""

    runs: tuple[str, ...]
    mean: float
    """Mean accuracy."""
    interval: Interval
    """Interval of the mean at 95 %, by Student's t over the seeds; infinite for one run."""
    to_first: GroupDifference | None
    """Difference to the first group; None for the first itself."""


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side."""

    data: str
    split: SplitName
    images: int
    runs: tuple[ComparedRun, ...]
    groups: tuple[SeedGroup, ...]
    """In the order of their first runs."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON; infinite bounds become None."""
        numbers: dict[str, Any] = finite(dataclasses.asdict(self))
        for row, run in zip(numbers["runs"], self.runs, strict=True):
            row["accuracy"] = run.accuracy.to_dict()
            row["verdict"] = None if run.to_first is None else run.to_first.verdict
        for row, group in zip(numbers["groups"], self.groups, strict=True):
            row["verdict"] = None if group.to_first is None else group.to_first.verdict
        return numbers


def compare_runs(
    runs: Sequence[str | Path],
    data: str | None = None,
    *,
    split: SplitName | None = None,
    batch_size: int = 256,
    device: str = "auto",
) -> RunComparison:
    """Evaluate runs or checkpoints on the same images, and compare each with the first.

    The data are those of the first run unless named. Raises ValueError for fewer than two runs, for other classes than the
    data's, and for images with several labels or none.
    """
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run can't be compared; name at least two")
    found = [logits_on(run, data or data_of(runs[0]), split=split, batch_size=batch_size, device=device) for run in runs]
    names = [name for name, _, _ in found]
    if len(set(names)) > 1:
        raise ValueError(f"the runs were evaluated on {' and '.join(sorted(set(map(str, names))))}; name DATA and --split")
    right, compared = [], list[ComparedRun]()
    for run, (_, split_logits, error) in zip(runs, found, strict=True):
        right.append(split_logits.logits.argmax(1) == split_logits.labels)
        paired = compare_pair(right[0], right[-1]) if len(right) > 1 else None
        compared.append(ComparedRun(str(run), Accuracy(int(right[-1].sum()), len(right[-1])), error, paired))
    name, chosen = names[0]
    return RunComparison(name, chosen, len(right[0]), tuple(compared), group_runs(compared))


def data_of(run: str | Path) -> str:
    """Return the data that a run was trained on. Raises ValueError for a checkpoint that names none."""
    return str(open_data(run)[0].data.path)


def logits_on(
    run: str | Path, data: str, *, split: SplitName | None, batch_size: int, device: str
) -> tuple[tuple[str, SplitName], SplitLogits, float]:
    """Return the data set and split, the logits of a run on it, and its calibration error."""
    opened = open_run(run, data, split=split, device=device)
    if opened.headless:
        raise ValueError(f"{run} has no classes to be compared; fine-tune it: `vitrail train DATA --weights {run}`")
    if opened.source.multi_label:
        has = f"{opened.source.name} has any number of labels an image"
        raise ValueError(f"{has}, and runs are compared on one class; use evaluate")
    found = compute_logits(
        opened.model,
        opened.load_split(),
        preprocessing=opened.preprocessing,
        batch_size=batch_size,
        device=opened.device,
        autocast_dtype=opened.autocast_dtype,
    )
    error = measure_trust(found.logits, found.labels, opened.model.card.calibration).error
    return (opened.source.name, opened.split), found, error


def group_runs(compared: Sequence[ComparedRun]) -> tuple[SeedGroup, ...]:
    """SeedGroup runs by their settings without the seed; a checkpoint that is no run is a group of its own."""
    members: dict[str, list[ComparedRun]] = {}
    for run in compared:
        members.setdefault(settings_without_seed(run.run), []).append(run)
    groups = list[SeedGroup]()
    first: list[float] = []
    for runs in members.values():
        scores = [run.accuracy.value for run in runs]
        first = first or scores
        difference = compare_groups(first, scores) if groups else None
        groups.append(SeedGroup(tuple(run.run for run in runs), fmean(scores), mean_interval(scores), difference))
    return tuple(groups)


def settings_without_seed(run: str) -> str:
    """Return a text that runs have in common whose settings differ in the seed alone."""
    if not is_run(run):
        return run
    layer = layers.read_config(Path(run, SETTINGS))
    layer.get("train", {}).pop("seed", None)
    return json.dumps(layer, sort_keys=True, default=str)

"""Sweep: one run for each combination of values and each seed, compared at the end."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from vitrail.data.dataset import Source, SplitName
from vitrail.evaluate.compare import RunComparison, compare_runs
from vitrail.evaluate.learning_curve import LearningCurve, last_doubling, learning_curve
from vitrail.settings import Settings, layers
from vitrail.tasks import TASKS
from vitrail.train.folder import Finished, can_resume, write_text_atomically
from vitrail.train.plan import Request, plan_run
from vitrail.train.progress import Display
from vitrail.train.run import make_request, request_record, run_request
from vitrail.train.sweep_figure import save_sweep_figure

FILE = "sweep.json"
SEEDS = 3
"""Default number of seeds."""
FRACTION = "data.fraction"


@dataclass(frozen=True)
class Combination:
    """One value of each setting of a sweep."""

    values: Mapping[str, Any]
    """By the setting's key, such as "model.pool"."""
    name: str
    """Name of its folder, such as "pool=cls,depth=6"."""


class CombinationScores(NamedTuple):
    """Accuracies of the runs of a combination, one for each seed, and their folders."""

    combination: Combination
    accuracies: list[float]
    folders: list[Path]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    combination: Combination
    seed: int
    folder: Path
    request: Request


@dataclass(frozen=True)
class Sweep:
    """Finished sweep."""

    folder: Path
    choices: Mapping[str, Sequence[Any]]
    runs: tuple[PlannedRun, ...]
    """Finished runs, those of a combination one after the other."""
    failed: tuple[tuple[str, str], ...]
    """Folder of each run that ended with an error, and its message."""
    comparison: RunComparison
    learning_curves: tuple[LearningCurve, ...]
    """With several values of data.fraction: one for each combination of the other settings."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "choices": {key: list(values) for key, values in self.choices.items()},
            "runs": [
                {"folder": str(run.folder), "seed": run.seed, "values": dict(run.combination.values)} for run in self.runs
            ],
            "failed": [{"folder": folder, "reason": reason} for folder, reason in self.failed],
            "comparison": self.comparison.to_dict(),
            "learning_curves": [curve.to_dict() for curve in self.learning_curves],
        }


def sweep(
    path: str | Path | None = None,
    *,
    choices: Mapping[str, Sequence[Any]],
    seeds: int = SEEDS,
    settings: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    split: SplitName | None = None,
    console: Console | None = None,
) -> Sweep:
    """Train a run for each combination of values and each seed, and compare them on the same images.

    `choices` are the values of each setting, {"model.pool": ["cls", "avg"]}; of several settings all combinations are
    trained. `settings` are those of all runs, as sections: {"train": {"epochs": 5}}. Path, recipe and config are those of
    `train`. Each run is a folder in `out`, by default a new one under runs/. The same call with the same `out` goes on:
    finished runs stay, a stopped one is resumed, and further values and seeds are added. A run that fails does not end the
    sweep. The runs are compared on the validation images where there are some, unless `split` is given, so that the test
    images stay for the one that is chosen. Raises ValueError before the first run for invalid settings of any of them, and
    for runs that can't be compared.
    """
    display = Display(console)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a sweep trains one run after the other in one process; start it without torchrun")
    folder = choose_sweep_folder(out, path)
    runs = list(plan_sweep(path, choices, seeds=seeds, settings=settings or {}, recipe=recipe, config=config, folder=folder))
    checked, source = check_sweep(runs)
    on = "val" if split is None and "val" in source.splits else split
    display.say(f"sweep folder {folder}: {len(runs)} runs; the same command with --out {folder} goes on where it stopped")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE).exists():
        write_text_atomically(folder / FILE, json.dumps({"choices": {key: list(each) for key, each in choices.items()}}) + "\n")
    failed: dict[str, str] = {}
    for number, run in enumerate(sorted(runs, key=lambda each: each.seed), start=1):  # all combinations, then the next seed
        display.say(f"run {number} of {len(runs)}: {run.combination.name}, seed {run.seed}")
        try:
            run_request(run.request, out=run.folder, resume="auto", console=console)
        except Finished:
            display.say("is finished")
        except ValueError as error:
            failed[str(run.folder)] = str(error)
            display.say(f"failed: {error}")
    finished = tuple(run for run in runs if str(run.folder) not in failed)
    if len(finished) < 2:
        raise ValueError(
            f"{len(finished)} of {len(runs)} runs finished, and two can be compared: {next(iter(failed.values()))}"
        )
    device = checked.train.device
    comparison = compare_runs([run.folder for run in finished], split=on, device=device)
    scores = accuracies_of(finished, comparison)
    curves = curves_of(scores, split=on, device=device)
    result = Sweep(folder, choices, finished, tuple(failed.items()), comparison, curves)
    write_text_atomically(folder / FILE, json.dumps(result.to_dict(), indent=2, default=str) + "\n")
    save_sweep_figure(scores, folder)
    return result


# --------------------------------------------------------------------------------------------------------------------
# Plan


def plan_sweep(
    path: str | Path | None,
    choices: Mapping[str, Sequence[Any]],
    *,
    seeds: int,
    settings: Mapping[str, Any],
    recipe: str | None,
    config: str | Path | None,
    folder: Path,
) -> Iterator[PlannedRun]:
    """Yield the runs of a sweep, those of a combination one after the other. Raises ValueError for invalid choices."""
    if seeds < 1:
        raise ValueError(f"seeds {seeds} must be at least 1")
    for combination in combine(choices, settings):
        layer = settings
        for key, value in combination.values.items():
            layer = with_value(layer, key, value)
        request = make_request(path, layer, recipe=recipe, config=config)
        first = int(request.layer.get("train", {}).get("seed", 0))
        for seed in range(first, first + seeds):
            seeded = make_request(path, with_value(layer, "train.seed", seed), recipe=recipe, config=config)
            yield PlannedRun(combination, seed, folder / combination.name / f"seed-{seed}", seeded)


def combine(choices: Mapping[str, Sequence[Any]], settings: Mapping[str, Any]) -> list[Combination]:
    """Return all combinations of values. Raises ValueError for an unknown setting, and for one without several values."""
    if not choices:
        raise ValueError("a sweep needs a setting and its values, such as --set model.pool=cls,avg")
    for key, values in choices.items():
        section, _, name = key.partition(".")
        given = settings.get(section)
        if key not in layers.key_types():
            raise ValueError(layers.unknown_key(key))
        if key == "train.seed":
            raise ValueError("train.seed is no setting of a sweep; use --seeds N, from --train.seed on")
        if (isinstance(given, Mapping) and name in given) or (key == "model.name" and isinstance(given, str)):
            raise ValueError(f"{key} has values of the sweep, and one of its own; leave one of them out")
        if len({repr(value) for value in values}) < len(values) or not values:
            raise ValueError(f"{key} {', '.join(map(str, values))}: a sweep needs different values")
    last = [key.rpartition(".")[2] for key in choices]
    labels = [key if last.count(name) > 1 else name for key, name in zip(choices, last, strict=True)]
    found, names = [], set[str]()
    for values in itertools.product(*choices.values()):
        text = ",".join(f"{label}={text_of(value)}" for label, value in zip(labels, values, strict=True))
        name = unique = re.sub(r"[^\w.=,+-]+", "-", text).strip("-")
        for number in itertools.count(2):
            if unique not in names:
                break
            unique = f"{name}-{number}"  # of values that differ in what a folder's name can't hold
        names.add(unique)
        found.append(Combination(dict(zip(choices, values, strict=True)), unique))
    return found


def text_of(value: Any) -> str:
    """Format a value for a folder's name: sizes as 96x128, all else as on the command line."""
    if isinstance(value, tuple | list):
        return "x".join(map(text_of, value))
    return value if isinstance(value, str) else json.dumps(value).removesuffix(".0")


def with_value(layer: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a layer of settings with one more value, as if it had been given with the others."""
    section, _, rest = key.partition(".")
    fields = layer.get(section) or {}
    fields = {"name": fields} if isinstance(fields, str) else fields
    return {**layer, section: with_value(fields, rest, value) if "." in rest else {**fields, rest: value}}


def check_sweep(runs: Sequence[PlannedRun]) -> tuple[Settings, Source]:
    """Resolve the settings of every combination, and look into every folder. Return the first one's settings and data set.

    Raises ValueError, with the combination, for settings or folders with which a run can't begin or go on.
    """
    if len(runs) < 2:
        raise ValueError("a sweep of one run has nothing to compare; give more values or seeds")
    resolved: dict[str, Settings] = {}
    source: Source | None = None
    for run in runs:
        name = run.combination.name
        try:
            if name not in resolved:
                plan = plan_run(run.request)
                if not TASKS[plan.settings.train.task].supervised or plan.source.multi_label:
                    kind = "any number of labels an image" if plan.source.multi_label else "no classes"
                    raise ValueError(f"the runs have {kind}, and a sweep compares accuracy on one class an image")
                if same := next((other for other, settings in resolved.items() if settings == plan.settings), None):
                    raise ValueError(f"its settings are those of {same}; leave one of the values out")
                resolved[name], source = plan.settings, source or plan.source
            can_resume(run.folder, request_record(run.request))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    assert source is not None
    return next(iter(resolved.values())), source


def choose_sweep_folder(out: str | Path | None, path: str | Path | None) -> Path:
    """Return the folder of a sweep: `out`, or the next free one under runs/. Raises ValueError for another folder."""
    if out is not None:
        folder = Path(out)
        if folder.exists() and not (folder / FILE).exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f'"{folder}" exists and is no sweep; choose another --out')
        return folder
    name, number = Path(path or "fashion-sample").resolve().name or "run", 1
    while Path("runs", f"{name}-sweep-{number}").exists():
        number += 1
    return Path("runs", f"{name}-sweep-{number}")


# --------------------------------------------------------------------------------------------------------------------
# Results


def accuracies_of(runs: Sequence[PlannedRun], comparison: RunComparison) -> list[CombinationScores]:
    """Return the accuracies of each combination's runs, in the order of the combinations."""
    scores: dict[str, CombinationScores] = {}
    for run, compared in zip(runs, comparison.runs, strict=True):
        found = scores.setdefault(run.combination.name, CombinationScores(run.combination, [], []))
        found.accuracies.append(compared.accuracy.value)
        found.folders.append(run.folder)
    return list(scores.values())


def curves_of(
    scores: Sequence[CombinationScores], *, split: SplitName | None = None, device: str = "auto"
) -> tuple[LearningCurve, ...]:
    """Return the learning curve of each combination of the settings other than data.fraction; () without that setting."""
    curves: dict[str, dict[float, CombinationScores]] = {}
    for each in scores:
        others = ", ".join(f"{key}={value}" for key, value in each.combination.values.items() if key != FRACTION)
        if FRACTION in each.combination.values:
            curves.setdefault(others, {})[float(each.combination.values[FRACTION])] = each
    found = []
    for others, points in curves.items():
        if len(points) < 2:  # the other runs failed
            continue
        small, large = (points[fraction] for fraction in last_doubling(list(points)))
        paired = None
        if min(len(small.accuracies), len(large.accuracies)) < 2:
            pair = compare_runs([small.folders[0], large.folders[0]], split=split, device=device)
            paired = pair.runs[1].to_first
        found.append(learning_curve({fraction: each.accuracies for fraction, each in points.items()}, others, paired=paired))
    return tuple(found)

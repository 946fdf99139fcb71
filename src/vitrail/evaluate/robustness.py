"""Accuracy of a run on corrupted, rotated, rescaled and compressed images, and at other input sizes."""

# N images · B batch · C channels · H W image · M measurements

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.batches import eval_batches
from vitrail.data.dataset import Split, SplitName
from vitrail.data.draws import Draws
from vitrail.data.listing import mark_output
from vitrail.data.subset import Subset, stratified_order
from vitrail.evaluate.changes import Change, pixel_conditions
from vitrail.evaluate.corruptions import CORRUPTIONS, SEVERITIES
from vitrail.evaluate.evaluate import in_eval_mode, require_finite
from vitrail.evaluate.intervals import Accuracy, Interval, interval_from, mean_interval, number_from
from vitrail.evaluate.robustness_figure import save_robustness_figure
from vitrail.evaluate.run import OpenedRun, open_run
from vitrail.evaluate.trust import finite
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair
from vitrail.weights.load import load
from vitrail.weights.run_folder import write_atomically

FILE = "robustness.json"
IMAGES = 1000
"""Default number of images, of which 1,000 put an accuracy of 90 % within 1.9 points."""
SIZE_FACTORS = (0.5, 0.75, 1.25, 1.5, 2.0)
"""Input sizes, of the model's own, each rounded to a size that it takes."""
_VALUES = 2**24  # in a batch, against the memory of draws
FindCorrect = Callable[..., Bool[Tensor, " N"]]


class ConditionAccuracy(NamedTuple):
    """Accuracy at one severity, or at one value of a sweep."""

    value: float
    accuracy: Accuracy


class MeanError(NamedTuple):
    """Mean over images, with its interval at 95 % (Student's t)."""

    value: float
    interval: Interval


@dataclass(frozen=True, eq=False)
class Robustness:
    """Accuracy of a model on changed images. All measurements are on the same images."""

    data: str
    split: SplitName
    images: int
    """Number of images: a part of the split, with every class in proportion."""
    split_images: int
    """Number of images of the split."""
    img_size: Pair
    seed: int
    """Seed of the random numbers of corruptions."""
    clean: Accuracy
    corruptions: Mapping[str, tuple[ConditionAccuracy, ...]]
    """By name, at severity 1 to 5."""
    sweeps: Mapping[str, tuple[ConditionAccuracy, ...]]
    """By name ("rotation", "scale", "jpeg", "input size"), in the order of the values; unchanged images included."""
    mean_corruption_error: MeanError
    """Mean error over all corruptions and severities, without another model's as denominators."""
    relative_corruption_error: MeanError
    """The same minus the error on clean images."""
    notes: tuple[str, ...]
    """What could not be measured, and why."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""

        def entries(measured: tuple[ConditionAccuracy, ...], key: str) -> list[dict[str, Any]]:
            found = ((each.value, each.accuracy) for each in measured)
            return [{key: value, "accuracy": share.value, "interval": list(share.interval)} for value, share in found]

        errors = {name: getattr(self, name) for name in ("mean_corruption_error", "relative_corruption_error")}
        return {
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "split_images": self.split_images,
            "img_size": list(self.img_size),
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "clean": {"accuracy": self.clean.value, "interval": list(self.clean.interval)},
            "summary": {name: finite({"value": mean.value, "interval": list(mean.interval)}) for name, mean in errors.items()},
            "corruptions": {name: entries(measured, "severity") for name, measured in self.corruptions.items()},
            "sweeps": {name: entries(measured, "value") for name, measured in self.sweeps.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Robustness:
        """Restore what `to_dict` wrote."""
        images = int(values["images"])

        def accuracy(entry: Mapping[str, Any]) -> Accuracy:
            return Accuracy(round(entry["accuracy"] * images), images)

        def measured(rows: Mapping[str, Any], key: str) -> dict[str, tuple[ConditionAccuracy, ...]]:
            return {name: tuple(ConditionAccuracy(each[key], accuracy(each)) for each in row) for name, row in rows.items()}

        means = {
            name: MeanError(number_from(mean["value"]), interval_from(mean["interval"]))
            for name, mean in values["summary"].items()
        }
        return cls(
            data=values["data"],
            split=values["split"],
            images=images,
            split_images=int(values["split_images"]),
            img_size=(values["img_size"][0], values["img_size"][1]),
            seed=int(values["seed"]),
            clean=accuracy(values["clean"]),
            corruptions=measured(values["corruptions"], "severity"),
            sweeps=measured(values["sweeps"], "value"),
            notes=tuple(values["notes"]),
            seconds=float(values["seconds"]),
            **means,
        )

    def loss(self, corruption: str) -> float:
        """Return what a corruption costs: accuracy on clean images minus the mean over its severities."""
        return self.clean.value - fmean(each.accuracy.value for each in self.corruptions[corruption])

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write robustness.json and robustness.png. Return their paths."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        with write_atomically(place / FILE) as draft:
            draft.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        files = place / FILE, save_robustness_figure(self, place)
        mark_output(place, files, command="evaluate")
        return files


def read_robustness(folder: Path) -> Robustness | None:
    """Read robustness.json; None without one. Raises ValueError for a damaged file."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Robustness.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} can't be read ({reason}); `vitrail evaluate {folder} --robustness` makes it anew") from error


def measure_robustness(
    run: str | Path,
    data: str | None = None,
    *,
    split: SplitName | None = None,
    images: int = IMAGES,
    seed: int = 0,
    batch_size: int = 256,
    device: str = "auto",
) -> Robustness:
    """Measure a run, or a checkpoint of any origin, on changed images of its own data or another data set.

    Data and split are those of `evaluate_run`, of which `images` are taken, with every class in proportion. They are changed
    in the size that the model takes, after resizing and cropping, as those of ImageNet-C. Raises ValueError for fewer than
    one image, for a model without classes, and for images with several labels.
    """
    if images < 1:
        raise ValueError(f"images {images} must be at least 1")
    start, opened = time.perf_counter(), open_run(run, data, split=split, device=device)
    if opened.headless or opened.source.multi_label:
        which = f"{run} has no classes" if opened.headless else f"{opened.source.name} has any number of labels an image"
        raise ValueError(f"{which}, and robustness is the accuracy on one class an image; leave it out")
    whole = opened.load_split(in_memory=False)
    positions = stratified_order(whole.labels, whole.names)[:images].sort().values
    sample = read_sample(whole, positions, batch_size=batch_size)
    find = partial(find_correct, opened=opened, seed=seed, batch_size=batch_size)
    conditions = pixel_conditions(opened.preprocessing)
    console = Console(stderr=True)
    shown = track(conditions, "robustness", console=console, transient=True, disable=not console.is_terminal)
    clean = find(opened.model, sample)
    correct = {(each.name, each.value): find(opened.model, sample, each.change) for each in shown}
    unchanged = {
        "rotation": [ConditionAccuracy(0, accuracy_of(clean))],
        "scale": [ConditionAccuracy(1, accuracy_of(clean))],
        "jpeg": [],
    }
    sweeps = {
        name: first + [ConditionAccuracy(value, accuracy_of(right)) for (of, value), right in correct.items() if of == name]
        for name, first in unchanged.items()
    }
    sizes, notes = measure_sizes(run, opened, positions, find, batch_size=batch_size)
    sweeps["input size"] = [ConditionAccuracy(1, accuracy_of(clean)), *sizes]
    every = torch.stack([correct[name, severity] for name in CORRUPTIONS for severity in SEVERITIES])  # (M, N)
    corrupted = every.double().mean(0)  # (N,): share of the corrupted versions of an image that are classified correctly
    return Robustness(
        data=opened.source.name,
        split=opened.split,
        images=len(clean),
        split_images=len(whole),
        img_size=opened.preprocessing.img_size,
        seed=seed,
        clean=accuracy_of(clean),
        corruptions={
            name: tuple(ConditionAccuracy(severity, accuracy_of(correct[name, severity])) for severity in SEVERITIES)
            for name in CORRUPTIONS
        },
        sweeps={name: tuple(sorted(measured, key=lambda each: each.value)) for name, measured in sweeps.items()},
        mean_corruption_error=mean_of(1 - corrupted),
        relative_corruption_error=mean_of(clean.double() - corrupted),
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
    )


def measure_sizes(
    run: str | Path, opened: OpenedRun, positions: Int64[Tensor, " n"], find: FindCorrect, *, batch_size: int
) -> tuple[list[ConditionAccuracy], list[str]]:
    """Measure a model at other input sizes, for which it is loaded anew. Return also what it can't be measured at, and why."""
    measured, notes = list[ConditionAccuracy](), list[str]()
    for factor, size in input_sizes(opened.model, opened.preprocessing.img_size).items():
        try:
            model = load(str(run), img_size=size).to(opened.device)
            views = opened.load_split(img_size=size, in_memory=False)
            right = find(model, read_sample(views, positions, batch_size=batch_size))
        except ValueError as error:  # such as that of a model whose windows do not fit
            notes.append(f"input size {size[0]}x{size[1]}: {error}")
        else:
            measured.append(ConditionAccuracy(factor, accuracy_of(right)))
    return measured, notes


# --------------------------------------------------------------------------------------------------------------------
# Images and predictions


@dataclass(frozen=True, eq=False)
class Sample:
    """Images of a split in evaluation view, on the CPU."""

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"]
    indexes: Int64[Tensor, " N"]
    """Position of each image in the split, the key of its random numbers."""


def read_sample(split: Split, positions: Int64[Tensor, " n"], *, batch_size: int) -> Sample:
    """Read some images of a split. Raises ValueError if there are none."""
    parts = [(raw.images, raw.labels, raw.indexes) for raw in eval_batches(Subset(split, positions), batch_size=batch_size)]
    if not parts:
        raise ValueError("there are no images to evaluate; the split is empty or none of its files could be read")
    images, labels, indexes = (torch.cat(values) for values in zip(*parts, strict=True))
    return Sample(images, labels, positions[indexes])


def find_correct(
    model: Backbone, sample: Sample, change: Change | None = None, *, opened: OpenedRun, seed: int, batch_size: int
) -> Bool[Tensor, " N"]:
    """Return which images a model classifies correctly after a change. Raises ValueError for logits that are not finite."""
    device, dtype, found = opened.device, opened.autocast_dtype, []
    rows = max(1, min(batch_size, _VALUES // sample.images[0].numel()))
    with in_eval_mode(model), torch.no_grad():
        for images, labels, indexes in zip(*(each.split(rows) for each in vars(sample).values()), strict=True):
            images = images.to(device)
            if change is not None:
                images = change(images, Draws(seed=seed, epoch=0, indexes=indexes.to(device)))
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = model(normalise(images, opened.preprocessing))
            require_finite(logits.isfinite().all(1))
            found.append(logits.float().argmax(1).cpu() == labels)
    return torch.cat(found)


def accuracy_of(correct: Bool[Tensor, " N"]) -> Accuracy:
    """Count the correct predictions."""
    return Accuracy(int(correct.sum()), len(correct))


def mean_of(values: Float[Tensor, " N"]) -> MeanError:
    """Return the mean of one value for each image."""
    return MeanError(float(values.mean()), mean_interval(values.tolist()))


def input_sizes(model: Backbone, own: Pair) -> dict[float, Pair]:
    """Return other sizes that a model takes, by the ratio of their short side to that of its own."""
    sizes: dict[float, Pair] = {1.0: own}
    for factor in SIZE_FACTORS:
        height, width = (max(1, round(side * factor / unit)) * unit for side, unit in zip(own, model.side_unit, strict=True))
        sizes.setdefault(round(min(height, width) / min(own), 4), (height, width))
    return {factor: size for factor, size in sizes.items() if size != own}

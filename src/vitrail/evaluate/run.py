"""Evaluation of a run folder or a checkpoint on a data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vitrail.data.listing import composed, mark_output
from vitrail.data.sources import Source, Split, SplitName, open_source
from vitrail.evaluate.embedding import evaluate_embedding, has_classes, known_images
from vitrail.evaluate.evaluate import evaluate, evaluate_labels
from vitrail.evaluate.metrics import Scores
from vitrail.evaluate.saved import save_evaluation
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast_dtype, pick_device
from vitrail.settings import Pair, Preprocessing, Settings, layers
from vitrail.text import listed
from vitrail.weights.load import load
from vitrail.weights.run_folder import SETTINGS, read_run


@dataclass(frozen=True)
class RunEvaluation:
    """Scores of a run or a checkpoint on one split of a data set."""

    data: str
    """Name of the data set."""
    split: SplitName
    scores: Scores
    folder: Path
    """Default folder of `save`: the run folder for the run's data and default split, else a separate one."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {"data": self.data, "split": self.split, **self.scores.to_dict()}

    def save(self, folder: str | Path | None = None) -> tuple[Path, ...]:
        """Write evaluation.json and, with one class per image, confusion.png and confusion.csv. Return their paths."""
        place = Path(folder or self.folder)
        place.mkdir(parents=True, exist_ok=True)
        files = save_evaluation(self.scores, place, data=self.data, split=self.split)
        mark_output(place, files, command="evaluate")
        return files


def evaluate_run(
    run: str | Path,
    data: str | None = None,
    *,
    split: SplitName | None = None,
    batch_size: int = 256,
    device: str = "auto",
    report: Callable[[str], object] = warnings.warn,
) -> RunEvaluation:
    """Evaluate a run folder, or a checkpoint of any origin, on its own data or on another data set.

    Without `split` the first of test, val and train that the data set has is scored. Of a model without a head the scores are
    those of its embedding, and the data may have any classes, or none. `report` receives a line for each assumption about
    the data. Raises ValueError for a checkpoint without `data`, and for data that does not fit the model.
    """
    opened = open_run(run, data, split=split, device=device, report=report)
    model, source, images = opened.model, opened.source, opened.load_split()
    options: dict[str, Any] = {
        "preprocessing": opened.preprocessing,
        "batch_size": batch_size,
        "device": opened.device,
        "autocast_dtype": opened.autocast_dtype,
    }
    scores: Scores
    if opened.headless:
        known = neighbours(source, images, opened.settings, opened.preprocessing)
        scores = evaluate_embedding(model, images, known=known, **options)
    else:
        scores = (evaluate_labels if source.multi_label else evaluate)(model, images, classes=source.classes, **options)
    into_run = is_run(run) and not data and not split  # the scores that the run was saved with stay as they are
    beside = Path(run) if Path(run).is_dir() else Path()  # a file or a Hub id is no folder to write to
    folder = Path(run) if into_run else beside / f"evaluation-{source.name}-{opened.split}"
    return RunEvaluation(source.name, opened.split, scores, folder)


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A model on its device, and the data set and split that it is evaluated on."""

    model: Backbone
    settings: Settings
    """Settings of the run; the defaults for another checkpoint."""
    source: Source
    split: SplitName
    device: torch.device
    autocast_dtype: torch.dtype | None
    """That of the training, where the device has it, as when the training measured itself; None for fp32."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the model."""
        assert self.model.preprocessing is not None
        return self.model.preprocessing

    @property
    def headless(self) -> bool:
        """True for a model without classes."""
        return not self.model.config.num_classes

    def load_split(self, *, img_size: Pair | None = None, in_memory: bool = True) -> Split:
        """Load the split in evaluation view, of the model's size unless another is given.

        Without `in_memory`, photographs are decoded when they are read: where only some of them are.
        """
        preprocessing = self.preprocessing if img_size is None else replace(self.preprocessing, img_size=img_size)
        cfg = self.settings.data if in_memory else replace(self.settings.data, memory_gb=0.0)
        return self.source.load(self.split, preprocessing=preprocessing, cfg=cfg, augment=None)


def open_run(
    run: str | Path,
    data: str | None = None,
    *,
    split: SplitName | None = None,
    device: str = "auto",
    report: Callable[[str], object] = lambda line: None,
) -> OpenedRun:
    """Load a run or a checkpoint, and open its own data or another data set. See `evaluate_run`."""
    where = pick_device(device)
    model = load(str(run)).to(where)
    assert model.preprocessing is not None
    headless = not model.config.num_classes
    cfg, source = open_data(run, data, classes=not headless)
    used = source.values_in_use(threads=cfg.data.workers)
    for line in (*(source.notes if data else ()), used and used.mismatch(model.preprocessing.range)):
        if line:
            report(line)
    if not headless and (line := check_classes(model, source, exact=is_run(run))):
        report(line)
    name = next(each for each in SPLITS if each in source.splits) if split is None else split
    unavailable = cfg.train.precision == "fp8" or (cfg.train.precision == "fp16" and where.type != "cuda")  # fp8 only trains
    precision = "auto" if unavailable else cfg.train.precision
    return OpenedRun(model, cfg, source, name, where, autocast_dtype(precision, where))


def neighbours(source: Source, images: Split, cfg: Settings, preprocessing: Preprocessing) -> Split | None:
    """Return the training images of k-NN for a split, as in training; None without classes."""
    if "train" not in source.splits or not has_classes(images):
        return None
    return known_images(source.load("train", preprocessing=preprocessing, cfg=cfg.data), seed=cfg.train.seed)


SPLITS: tuple[SplitName, ...] = ("test", "val", "train")
"""Splits, in order of preference."""


def is_run(run: str | Path) -> bool:
    """Return whether a path is a folder that a training wrote."""
    return Path(run, SETTINGS).is_file()


def open_data(
    run: str | Path, data: str | None = None, *, way_out: str = "name DATA", classes: bool = True
) -> tuple[Settings, Source]:
    """Return a run's settings, or the defaults for another checkpoint, and a data set: without a name the run's.

    Without `classes`, the data may have none.
    Raises ValueError, which ends with `way_out`, for a checkpoint that names no data set.
    """
    if data is None and not is_run(run):
        raise ValueError(f"{run} is no folder of `vitrail train`, so it does not say its data; {way_out}")
    cfg = layers.build([layers.read_config(Path(run, SETTINGS))] if is_run(run) else [])
    name, fraction = data or read_run(run).data, 1.0 if data else cfg.data.fraction
    return cfg, open_source(name, val_fraction=cfg.data.val_fraction, fraction=fraction, classes=classes)


def check_classes(model: Backbone, source: Source, *, exact: bool) -> str | None:
    """Check that a data set has the classes of a model, by name and in order.

    With `exact=False`, for checkpoints that may name their classes otherwise, the number of classes is enough: the result is
    then a note that says which names are taken for which. Raises ValueError for other classes and, with `exact=True`, for one
    class per image where the model was trained on several labels, or the reverse.
    """
    note = None
    if source.classes != tuple(map(composed, model.classes)):
        theirs, ours = listed(source.classes), listed(model.classes) or "no names"
        if exact or len(source.classes) != model.config.num_classes:
            says = f"{source.name} has the classes {theirs}, and the model {model.config.num_classes:,}: {ours}"
            raise ValueError(f"{says}; give data of the model's classes")
        note = f"the checkpoint calls its classes {ours}; taken in the order of {theirs}"
    if exact and source.multi_label != model.multi_label:
        kinds = ("one class an image", "any number of labels an image")
        says = f"{source.name} has {kinds[source.multi_label]}, and the model was trained on {kinds[model.multi_label]}"
        raise ValueError(f"{says}; give data of its kind")
    return note

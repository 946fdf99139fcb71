"""Evaluation of a run folder or a checkpoint on a data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.listing import composed, mark_output
from vitrail.data.sources import Source, Split, SplitName, open_source
from vitrail.evaluate.embedding import evaluate_embedding, has_classes, known_images
from vitrail.evaluate.evaluate import evaluate, evaluate_labels
from vitrail.evaluate.metrics import Scores
from vitrail.evaluate.saved import save_evaluation
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast_dtype, pick_device
from vitrail.settings import Preprocessing, Settings, layers
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
    precision = "auto" if cfg.train.precision == "fp16" and where.type != "cuda" else cfg.train.precision
    images = source.load(name, preprocessing=model.preprocessing, cfg=cfg.data, augment=None)
    options: dict[str, Any] = {
        "preprocessing": model.preprocessing,
        "batch_size": batch_size,
        "device": where,
        "autocast_dtype": autocast_dtype(precision, where),  # as when the training measured itself
    }
    scores: Scores
    if headless:
        scores = evaluate_embedding(model, images, known=neighbours(source, images, cfg, model.preprocessing), **options)
    else:
        scores = (evaluate_labels if source.multi_label else evaluate)(model, images, classes=source.classes, **options)
    into_run = is_run(run) and not data and not split  # the scores that the run was saved with stay as they are
    beside = Path(run) if Path(run).is_dir() else Path()  # a file or a Hub id is no folder to write to
    return RunEvaluation(source.name, name, scores, Path(run) if into_run else beside / f"evaluation-{source.name}-{name}")


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
    return cfg, open_source(data or read_run(run).data, val_fraction=cfg.data.val_fraction, classes=classes)


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

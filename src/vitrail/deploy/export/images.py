"""Real images that an export is measured on: of the run's own data, or of a folder."""

# N images · C channels · H W image

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vitrail.data.decode import eval_view
from vitrail.data.sources import Source, Split, SplitName
from vitrail.evaluate.run import check_classes, is_run, open_data
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, Preprocessing, Settings

SPLITS: tuple[SplitName, ...] = ("val", "test", "train")
"""Splits, in order of preference: the validation images first."""
LABELLED = 5000
"""Number of images that accuracy is measured on at most."""
WAY_OUT = "name images with --images FOLDER"


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one split, evenly spread over it."""

    data: str
    """Name of the data set."""
    split: SplitName
    views: UInt8[Tensor, "N C H W"]
    """Evaluation views."""
    labels: Int64[Tensor, " N"]
    """Class of each image; -1 where it has none, or several."""
    pictures: tuple[UInt8[Tensor, "_H _W C"], ...] = ()
    """Whole images as decoded, of which `views` are the evaluation views; empty unless they were asked for."""


def read_images(
    run: str | Path,
    data: str | None,
    *,
    preprocessing: Preprocessing,
    count: int,
    pictures: bool = False,
    split: SplitName | None = None,
) -> Images:
    """Read at most `count` images of a data set, without a name the run's own: its validation images.

    Raises ValueError for a checkpoint that names no data set, and where no image can be read.
    """
    cfg, source = open_data(run, data, way_out=WAY_OUT, classes=False)
    name = next(each for each in SPLITS if each in source.splits) if split is None else split
    images = _load(source, name, preprocessing, cfg, whole=pictures)
    chosen = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
    batch, failed = images.read(chosen)
    if not len(batch.images):
        reason = f" ({failed[0].path}: {failed[0].reason})" if failed else ""
        raise ValueError(f"no image of {source.name} can be read{reason}; {WAY_OUT}")
    if not pictures:
        return Images(source.name, name, batch.images, batch.labels)
    whole = tuple(
        image[:, :height, :width].permute(1, 2, 0).contiguous()
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True)
    )
    views = torch.stack([eval_view(picture.numpy(), preprocessing) for picture in whole])
    return Images(source.name, name, views, batch.labels, whole)


def read_labelled(model: Backbone, run: str | Path, data: str | None, *, split: SplitName, count: int = LABELLED) -> Images:
    """Read at most `count` images of one split, for the accuracy of a model on them or to calibrate with.

    Raises ValueError for data without this split or with other classes, and where an image has no class of its own.
    """
    assert model.preprocessing is not None
    source = open_data(run, data, way_out=WAY_OUT, classes=False)[1]
    if split not in source.splits:
        raise ValueError(f"{source.name} has no {split} images, which accuracy is measured with; {WAY_OUT}")
    images = read_images(run, data, preprocessing=model.preprocessing, count=count, split=split)
    if source.multi_label or bool((images.labels < 0).any()):
        raise ValueError(f"accuracy is measured on images with one class each, which {source.name} has not; {WAY_OUT}")
    if note := check_classes(model, source, exact=is_run(run)):
        warnings.warn(note, stacklevel=2)
    return images


def _load(source: Source, split: SplitName, preprocessing: Preprocessing, cfg: Settings, *, whole: bool) -> Split:
    """Load a split whose photographs are decoded when they are read."""
    lazily = dataclasses.replace(cfg.data, memory_gb=0.0)
    augment = AugmentConfig(crop="whole") if whole else None
    return source.load(split, preprocessing=preprocessing, cfg=lazily, augment=augment)

"""Table of tasks: how each is built from settings, what it requires of the data, and which settings have no effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from vitrail.data.dataset import Source, Split
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, Preprocessing, Settings
from vitrail.tasks.beit import beit_task, check_beit
from vitrail.tasks.dino import check_dino, dino_task
from vitrail.tasks.lejepa import check_lejepa, lejepa_task
from vitrail.tasks.mae import check_mae, mae_task
from vitrail.tasks.simmim import check_simmim, simmim_task
from vitrail.tasks.supervised import check_supervised, supervised_task
from vitrail.tasks.task import Task


@runtime_checkable
class TaskBuilder(Protocol):
    """Function that builds the task of a run around its model, which is on `device`. Raises ValueError for invalid settings."""

    def __call__(
        self,
        settings: Settings,
        model: Backbone,
        *,
        split: Split,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        device: torch.device,
        autocast_dtype: torch.dtype | None,
    ) -> Task:
        """Build the task; `split` are the training images, `preprocessing` and `classes` those of the data."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One row of `TASKS`: properties of a task that are known before the model is built."""

    build: TaskBuilder
    supervised: bool
    """True if the task uses classes or labels; otherwise images need none, the model has no head, and no probe is run."""
    check: Callable[[Settings, Backbone], None] = lambda settings, model: None
    """Raise ValueError for invalid settings of the task, before images are read; the model is on the meta device."""
    recipe: str | None = None
    """Default recipe for photographs; None takes the one for the data."""
    small_recipe: str | None = None
    """Default recipe for images of one small size; None takes `recipe`."""
    unused: tuple[str, ...] = ()
    """Settings without effect: a section, a field, or a field and one of its values."""
    canvas: Callable[[Settings], float] | None = None
    """For a task that draws its own crops: whole images are read at this multiple of the image size. None: the loader draws
    one crop of each image."""
    pictures: str | None = None
    """Folder in the run for the pictures that the task draws at each evaluation; None if it draws none."""
    next_steps: tuple[str, ...] = ()
    """Commands that use a finished run, with {run} for its folder."""

    def classes(self, source: Source) -> tuple[str, ...]:
        """Return the classes of the model's head."""
        return source.classes if self.supervised else ()

    def reading(self, settings: Settings, preprocessing: Preprocessing) -> tuple[AugmentConfig, Preprocessing]:
        """Return the augmentation whose crop the loader draws, and the preprocessing with the size that images are read at."""
        if self.canvas is None:
            return settings.augment, preprocessing
        height, width = (round(side * self.canvas(settings)) for side in preprocessing.img_size)
        return replace(settings.augment, crop="whole"), replace(preprocessing, img_size=(height, width))

    def recipe_for(self, source: Source) -> str | None:
        """Return the default recipe; None takes the one for the data."""
        return self.recipe if source.img_size is None else self.small_recipe or self.recipe


METHODS = ("mae", "simmim", "beit", "dino", "lejepa", "views")
"""Sections of the tasks without labels."""
WITHOUT_LABELS = ("guard", "train.compare")
"""Settings of all tasks without labels."""
OF_LABELS = (
    "distill",
    "augment.mixup_alpha",
    "augment.cutmix_alpha",
    "augment.mixup_prob",
    "augment.switch_prob",
    "optim.loss",
    "optim.label_smoothing",
    "data.balance loss",
    "data.pack",
    "train.ladder",
    "train.probe_head",
    "train.stop_early",
)
"""Settings of tasks with labels."""


def unused_by(*used: str) -> tuple[str, ...]:
    """Return the settings that a task without labels does not use: those of labels, and the sections of other methods."""
    return (*OF_LABELS, *(section for section in METHODS if section not in used))


AFTER_PRETRAINING = (
    "vitrail train DATA --weights {run}",
    "vitrail probe {run} DATA",
    "vitrail explain {run} IMAGE.png --method pca",
)


def canvas_of_views(settings: Settings) -> float:
    """Return the scale at which whole images are read for views."""
    return settings.views.canvas


TASKS: dict[str, TaskSpec] = {
    "classify": TaskSpec(
        build=supervised_task,
        supervised=True,
        check=check_supervised,
        unused=(*METHODS, *WITHOUT_LABELS),
        next_steps=("vitrail evaluate {run}", "vitrail predict {run} IMAGE.png", "vitrail explain {run} IMAGE.png"),
    ),
    "mae": TaskSpec(
        build=mae_task,
        supervised=False,
        check=check_mae,
        recipe="mae-photos",
        small_recipe="mae-small",
        unused=unused_by("mae"),
        pictures="reconstructions",
        next_steps=AFTER_PRETRAINING,
    ),
    "simmim": TaskSpec(
        build=simmim_task,
        supervised=False,
        check=check_simmim,
        recipe="simmim-photos",
        small_recipe="simmim-small",
        unused=unused_by("simmim"),
        pictures="reconstructions",
        next_steps=AFTER_PRETRAINING,
    ),
    "beit": TaskSpec(
        build=beit_task,
        supervised=False,
        check=check_beit,
        recipe="beit-photos",
        small_recipe="beit-small",
        unused=unused_by("beit"),
        next_steps=AFTER_PRETRAINING,
    ),
    "dino": TaskSpec(
        build=dino_task,
        supervised=False,
        check=check_dino,
        recipe="dino-photos",
        small_recipe="dino-small",
        unused=unused_by("dino", "views"),
        canvas=canvas_of_views,
        next_steps=AFTER_PRETRAINING,
    ),
    "lejepa": TaskSpec(
        build=lejepa_task,
        supervised=False,
        check=check_lejepa,
        recipe="lejepa-photos",
        small_recipe="lejepa-small",
        unused=unused_by("lejepa", "views"),
        canvas=canvas_of_views,
        next_steps=AFTER_PRETRAINING,
    ),
}
"""Task name, as in `train.task`, to its row."""

"""Builder of the supervised tasks: classification, labels, or distillation, by settings and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vitrail.data.dataset import Split
from vitrail.models.backbone import Backbone
from vitrail.models.packing import require_packable
from vitrail.settings import Preprocessing, Settings
from vitrail.tasks.classify import Classify, MultiLabel
from vitrail.tasks.distil import Distil
from vitrail.tasks.losses import balanced_weights, target_smoothing
from vitrail.tasks.teacher import load_teacher


def check_supervised(settings: Settings, model: Backbone) -> None:
    """Raise ValueError for `data.pack` with a model or settings that need images of one size."""
    if not settings.data.pack:
        return
    if settings.distill.teacher is not None and settings.distill.alpha > 0:
        raise ValueError("data.pack gives images of many sizes, and distill.teacher sees one size; leave one of them out")
    if settings.train.patch_sizes:
        raise ValueError("data.pack cuts images into the model's own patches; leave train.patch_sizes out")
    if settings.augment.crop != "resized":
        crop = settings.augment.crop
        raise ValueError(f'data.pack keeps the aspect ratio of crops; use augment.crop resized, not "{crop}"')
    require_packable(model)


def supervised_task(
    settings: Settings,
    model: Backbone,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Classify:
    """Build a task of classification, labels, or distillation.

    `preprocessing` and `classes` are the model's own, which a teacher must fit. Raises ValueError for a teacher that does not,
    and for settings that images of several classes do not support.
    """
    optim, distill, multi_label = settings.optim, settings.distill, split.multi_label
    if settings.data.balance == "loss" and multi_label:
        raise ValueError('data.balance "loss" weighs an image by its one class, and these have several; use "none"')
    smoothing = target_smoothing(optim, multi_label=multi_label)
    weights = None
    if settings.data.balance == "loss":
        weights = balanced_weights(split.labels, num_classes=len(classes), label_smoothing=smoothing).to(device)
    options: dict[str, Any] = {
        "preprocessing": preprocessing,
        "augment": settings.augment,
        "seed": settings.train.seed,
        "loss": "bce" if multi_label else optim.loss,
        "weights": weights,
        "label_smoothing": smoothing,
        "pack": settings.data.pack,
    }
    if distill.teacher is None or distill.alpha == 0:
        return (MultiLabel if multi_label else Classify)(model, **options)
    if multi_label:
        raise ValueError("distill.teacher chooses one class an image, and these have several; leave it out")
    if distill.alpha == 1 and len(model.heads) > 1:
        raise ValueError(
            "distill.alpha 1.0 leaves the class head unlearned, and it counts in the prediction; "
            "use an alpha below 1, or model.dist_token false"
        )
    teacher = None
    if not distill.once:
        teacher = load_teacher(
            distill.teacher, num_classes=len(classes), classes=classes, preprocessing=preprocessing, device=device
        )
    return Distil(model, cfg=distill, teacher=teacher, device=device, autocast_dtype=autocast_dtype, **options)

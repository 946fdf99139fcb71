"""Classification: one class per image, or with `MultiLabel` any number of labels."""

# B batch · K classes

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.data.apply_colors import apply_each_
from vitrail.data.augment import augment
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.data.pack import augment_packed
from vitrail.evaluate import Scores, evaluate, evaluate_labels
from vitrail.evaluate.evaluate import ALONE, Among, compute_logits
from vitrail.evaluate.trust import calibrate
from vitrail.models.backbone import Backbone
from vitrail.models.card import Calibration
from vitrail.settings import AugmentConfig, Pair, Preprocessing
from vitrail.tasks.losses import Loss, accuracy, call, label_loss
from vitrail.tasks.task import Task


class Classify(Task):
    """Classification with soft targets.

    `weights` are class weights of the loss; `label_smoothing` applies to the targets, which mixup and cutmix mix.
    With `pack`, each image keeps its aspect ratio, within the number of patches of the model's images.
    """

    teacher_targets: Float[Tensor, "N K"] | None = None
    """Teacher's targets of every training image, mixed like the labels; None without a teacher or with an online one."""
    score: ClassVar[Callable[..., Scores]] = staticmethod(evaluate)
    """Evaluation function of a split."""

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        augment: AugmentConfig = AugmentConfig(),
        seed: int = 0,
        loss: Loss = "ce",
        weights: Float[Tensor, " K"] | None = None,
        label_smoothing: float = 0.0,
        pack: bool = False,
    ) -> None:
        super().__init__(model, preprocessing=preprocessing)
        self.augment, self.seed, self.loss, self.weights = augment, seed, loss, weights
        self.label_smoothing, self.pack = label_smoothing, pack

    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """See Task.batch."""
        augmented = partial(augment_packed, patch=self.model.side_unit) if self.pack else augment
        batch = augmented(
            raw,
            cfg=self.augment,
            preprocessing=replace(self.preprocessing, img_size=img_size),
            num_classes=self.model.config.num_classes,
            seed=self.seed,
            epoch=epoch,
            label_smoothing=self.label_smoothing,
            teacher_targets=self.teacher_targets,
            apply=apply_each_ if self.pack else self.apply_colors,  # compiled for few sizes of images
        )
        return replace(batch, patch_size=patch_size)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss", and the share of images whose class with the greatest target is predicted."""
        logits = call(self.model, batch).float()  # (B, K)
        return {"loss": self.label_loss(logits, batch), "accuracy": accuracy(logits, batch)}

    def label_loss(self, logits: Float[Tensor, "B K"], batch: Batch) -> Tensor:
        """Compute the loss against the labels."""
        return label_loss(logits, batch.targets, loss=self.loss, weights=self.weights)

    def evaluate(
        self,
        split: Split,
        *,
        model: Backbone | None = None,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        among: Among = ALONE,
    ) -> Scores:
        """Compute scores with intervals, overall and of each class."""
        scored = self.model if model is None else model
        return self.score(
            scored,
            split,
            preprocessing=self.preprocessing,
            classes=scored.classes,
            device=device,
            autocast_dtype=autocast_dtype,
            among=among,
        )

    def calibrate(
        self,
        split: Split,
        *,
        model: Backbone | None = None,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        among: Among = ALONE,
    ) -> Calibration | None:
        """Fit temperature, conformal scores and outlier threshold."""
        options: dict[str, Any] = {"device": device, "autocast_dtype": autocast_dtype, "among": among}
        found = compute_logits(self.model if model is None else model, split, preprocessing=self.preprocessing, **options)
        return calibrate(found.logits, found.labels)


class MultiLabel(Classify):
    """Multi-label classification with binary cross-entropy of each label (Wightman et al. 2021)."""

    score = staticmethod(evaluate_labels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss", and the share of (image, label) pairs that are predicted correctly."""
        logits = call(self.model, batch).float()  # (B, K)
        right = (logits.detach() > 0) == (batch.targets > 0.5)
        return {"loss": self.label_loss(logits, batch), "binary_accuracy": right.float().mean()}

    def calibrate(
        self,
        split: Split,
        *,
        model: Backbone | None = None,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        among: Among = ALONE,
    ) -> Calibration | None:
        """Fit nothing: temperature, sets and outliers are of one class an image."""
        return None

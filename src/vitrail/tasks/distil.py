"""Distillation: training on the labels and on a teacher's targets (DeiT: Touvron et al. 2021)."""

# N images · B batch · K classes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.evaluate.evaluate import ALONE, Among, over_batches
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast
from vitrail.settings import DistillConfig, Preprocessing
from vitrail.tasks.classify import Classify
from vitrail.tasks.losses import accuracy, call, teacher_loss, teacher_targets
from vitrail.tasks.teacher import load_teacher


class Distil(Classify):
    """Distillation: (1 - alpha) of the labels' loss and alpha of the teacher's (Touvron et al. 2021, equations 2 and 3).

    The teacher takes the same augmented and mixed images as the student. With `distill.once`, its targets are computed before
    training and mixed like the labels instead. With a distillation token, that token's head learns from the teacher and the
    class head from the labels; without, one head learns both. The accuracy is that of the head that learns the labels.

    The teacher is not a submodule: it is not trained, saved, or sent between processes.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        cfg: DistillConfig,
        teacher: nn.Module | None = None,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.cfg, self.device, self.autocast_dtype = cfg, device, autocast_dtype
        self._teacher = (teacher,)  # in a tuple it is no submodule

    def preparation(self, images: int, *, resumed: bool = False) -> str:
        """See Task.preparation: with `distill.once` the teacher's targets are computed before training."""
        return f"computing the teacher's targets of {images:,} images once (distill.once)" if self.cfg.once else ""

    def prepare(self, view: Split, *, among: Among = ALONE, resumed: bool = False) -> None:
        """Compute the teacher's targets of every training image; each process computes its part."""
        self.teacher_targets = compute_teacher_targets(
            self.cfg,
            view,
            preprocessing=self.preprocessing,
            classes=self.model.classes,
            device=self.device,
            dtype=self.autocast_dtype,
            among=among,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss", "accuracy", and both parts of the loss."""
        cfg, (logits, *others) = self.cfg, (one.float() for one in call(self.model.head_logits, batch))
        label = self.label_loss(logits, batch)
        [teacher] = self._teacher
        targets = batch.teacher_targets
        if teacher is not None:
            teacher_logits = compute_teacher_logits(teacher, batch.images, device=self.device, dtype=self.autocast_dtype)
            targets = teacher_targets(teacher_logits, kind=cfg.kind, tau=cfg.tau)
        assert targets is not None
        distillation = teacher_loss(others[0] if others else logits, targets, kind=cfg.kind, tau=cfg.tau)
        return {
            "loss": (1 - cfg.alpha) * label + cfg.alpha * distillation,
            "accuracy": accuracy(logits, batch),
            "label_loss": label,
            "teacher_loss": distillation,
        }


def compute_teacher_logits(
    teacher: nn.Module, images: Float[Tensor, "B C H W"], *, device: torch.device, dtype: torch.dtype | None
) -> Float[Tensor, "B K"]:
    """Compute the teacher's logits, in the number type of the run, without gradients."""
    with torch.no_grad(), autocast(device, dtype):  # no inference mode: what comes out goes into a backward pass
        return teacher(images).float()


def compute_teacher_targets(
    cfg: DistillConfig,
    split: Split,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    dtype: torch.dtype | None,
    among: Among = ALONE,
) -> Float[Tensor, "N K"]:
    """Compute the teacher's targets of every image of a split in evaluation view, on the CPU in float16.

    An unreadable image has zeros, which give no loss. Raises ValueError for a teacher that does not fit.
    """
    assert cfg.teacher is not None
    teacher = load_teacher(cfg.teacher, num_classes=len(classes), classes=classes, preprocessing=preprocessing, device=device)

    def take(logits: Tensor, raw: RawBatch) -> tuple[Tensor, Tensor]:
        return raw.indexes.cpu(), teacher_targets(logits.float(), kind=cfg.kind, tau=cfg.tau).half().cpu()

    part_targets = over_batches(take, teacher, split, preprocessing, device=device, autocast_dtype=dtype, among=among)
    all_targets = torch.zeros(len(split), len(classes), dtype=torch.float16)
    for indexes, targets in (pair for part in among.gather(part_targets) for pair in part):
        all_targets[indexes] = targets
    return all_targets

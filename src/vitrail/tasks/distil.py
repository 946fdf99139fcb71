"""Distillation: the labels, and a teacher's answers beside them (DeiT: Touvron et al. 2021)."""

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
    """(1 - alpha) of the labels' loss and alpha of the teacher's (Touvron et al. 2021, equations 2 and 3).

    The teacher sees the images as the student does: augmented and mixed. With `answers`, what it said of every training image
    before is mixed as the labels are instead. With a distillation token, its head learns from the teacher and the class head
    from the labels; else one head learns both. The accuracy is the head's that learns the labels.

    The teacher is no submodule: it is not trained, saved, or sent between processes.
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
        self.answers: Float[Tensor, "N K"] | None = None
        self._teacher = (teacher,)  # in a tuple it is no submodule

    def preparation(self, images: int) -> str:
        """See Task.preparation: with `distill.once` the teacher is asked before training."""
        return f"asking the teacher about {images:,} images once (distill.once)" if self.cfg.once else ""

    def prepare(self, view: Split, *, among: Among = ALONE) -> None:
        """Ask the teacher about every training image, of which each process asks about its part."""
        self.answers = answers(
            self.cfg,
            view,
            preprocessing=self.preprocessing,
            classes=self.model.classes,
            device=self.device,
            dtype=self.autocast_dtype,
            among=among,
        )

    def extra_targets(self) -> Float[Tensor, "N K"] | None:
        """See Classify.extra_targets: the teacher's answers, where it was asked before."""
        return self.answers

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """ "loss", "accuracy", and both parts of the loss."""
        cfg, (logits, *others) = self.cfg, (one.float() for one in call(self.model.head_logits, batch))
        label = self.label_loss(logits, batch)
        [teacher] = self._teacher
        targets = batch.taught
        if teacher is not None:
            answered = ask_teacher(teacher, batch.images, device=self.device, dtype=self.autocast_dtype)
            targets = teacher_targets(answered, kind=cfg.kind, tau=cfg.tau)
        assert targets is not None
        taught = teacher_loss(others[0] if others else logits, targets, kind=cfg.kind, tau=cfg.tau)
        return {
            "loss": (1 - cfg.alpha) * label + cfg.alpha * taught,
            "accuracy": accuracy(logits, batch),
            "label_loss": label,
            "teacher_loss": taught,
        }


def ask_teacher(
    teacher: nn.Module, images: Float[Tensor, "B C H W"], *, device: torch.device, dtype: torch.dtype | None
) -> Float[Tensor, "B K"]:
    """The teacher's logits, in the number type of the run, without gradients."""
    with torch.no_grad(), autocast(device, dtype):  # no inference mode: what comes out goes into a backward pass
        return teacher(images).float()


def answers(
    told: DistillConfig,
    split: Split,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    dtype: torch.dtype | None,
    among: Among = ALONE,
) -> Float[Tensor, "N K"]:
    """What the teacher says of every image of a split in evaluation view, on the CPU in float16: targets beside the labels.

    An image that can't be read has zeros, and teaches nothing. Raises ValueError for a teacher that does not fit.
    """
    assert told.teacher is not None
    teacher = load_teacher(told.teacher, num_classes=len(classes), classes=classes, preprocessing=preprocessing, device=device)

    def take(logits: Tensor, raw: RawBatch) -> tuple[Tensor, Tensor]:
        return raw.indexes.cpu(), teacher_targets(logits.float(), kind=told.kind, tau=told.tau).half().cpu()

    own = over_batches(take, teacher, split, preprocessing, device=device, autocast_dtype=dtype, among=among)
    said = torch.zeros(len(split), len(classes), dtype=torch.float16)
    for indexes, targets in (pair for part in among.gather(own) for pair in part):
        said[indexes] = targets
    return said

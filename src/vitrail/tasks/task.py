"""The contract of a task: raw batch to targets, targets to losses, scores of a split, and what is saved.

A task is one file and one row of `TASKS`. The loop, the optimizers, the checkpoints and the distributed code know no task by
name.
"""

# B batch · C channels · H W image

from __future__ import annotations

from abc import abstractmethod

import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.evaluate import Scores
from vitrail.evaluate.evaluate import ALONE, Among
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair, Preprocessing


class Task(nn.Module):
    """What is learned: the backbone, whatever learns with it, and the loss that they learn by.

    Submodules beside `model` (a decoder, a projector) are trained and checkpointed with it, and are no part of the product. A
    frozen teacher is kept out of the submodules: it is loaded by name when a run starts or resumes.
    """

    model: Backbone
    """The backbone, with its head where the task has classes."""
    preprocessing: Preprocessing
    """Evaluation view of the images; `batch` normalises by it."""

    def __init__(self, model: Backbone, *, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing

    def preparation(self, images: int) -> str:
        """A line that says what `prepare` is about to compute of so many training images; "" where that is nothing."""
        return ""

    def prepare(self, view: Split, *, among: Among = ALONE) -> None:
        """Compute what is needed once, before the first step, from the training images in evaluation view."""

    @abstractmethod
    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Augmented images at `img_size` with their targets. Every draw is keyed by seed, epoch and image."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """ "loss", a mean over the batch; the other entries are logged, and are means over the batch too."""

    def leaves_parameters_out(self) -> bool:
        """Whether the loss leaves some parameters that learn without a gradient; processes then ask for them at each step."""
        return False

    def after_step(self, step: int) -> None:
        """Move what follows the weights (a teacher that is their running mean), after optimizer step `step`, from 0."""

    @abstractmethod
    def evaluate(
        self,
        split: Split,
        *,
        model: Backbone | None = None,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        among: Among = ALONE,
    ) -> Scores | None:
        """Scores on a split in evaluation view; of `model`, a running mean, instead of the task's own where one is given.

        None where the task has no score for such a split.
        """

    def picture(self, split: Split, *, device: torch.device, autocast_dtype: torch.dtype | None = None) -> Image.Image | None:
        """What the task makes of some images of a split in evaluation view, to look at; None where there is nothing to see.

        Random draws of a picture are keyed, and the picture changes nothing of what is learned.
        """
        return None

    def product(self) -> Backbone:
        """What is saved, exported and served."""
        return self.model

    def companions(self) -> dict[str, nn.Module]:
        """The submodules that learn beside the model, by name."""
        return {name: module for name, module in self.named_children() if module is not self.model}

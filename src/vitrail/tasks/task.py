"""Task interface: raw batch to targets, targets to losses, scores of a split, and saved model.

A task is one file and one row of `TASKS`. The loop, the optimizers, the checkpoints and the distributed code know no task by
name.
"""

# B batch · C channels · H W image

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.data.apply_colors import ApplyColors, apply_each_
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.evaluate import Scores
from vitrail.evaluate.evaluate import ALONE, Among
from vitrail.models.backbone import Backbone
from vitrail.models.card import Calibration
from vitrail.settings import Pair, Preprocessing

CollapseCause = Literal["low rank", "rank fell", "accuracy fell", "one prototype", "no spread"]
"""Causes for which training without labels is stopped: see `settings.GuardConfig`."""


class Task(nn.Module):
    """Training task: the backbone, other modules trained with it, and the loss.

    Submodules beside `model` (a decoder, a projector, a teacher that follows the weights) are checkpointed with it, and those
    with gradients are trained. A frozen teacher is kept out of the submodules: it is loaded by name when a run starts or
    resumes.
    """

    model: Backbone
    """Backbone, with a head if the task has classes."""
    preprocessing: Preprocessing
    """Evaluation view of the images; `batch` normalises by it."""
    known: Split | None = None
    """Training images in evaluation view, among which k-NN looks for neighbours; None without such a score."""
    apply_colors: ApplyColors = staticmethod(apply_each_)
    """How `batch` computes the colours of augmentation."""

    def __init__(self, model: Backbone, *, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model, self.preprocessing = model, preprocessing

    def preparation(self, images: int, *, resumed: bool = False) -> str:
        """Return a line on what `prepare` will compute for this number of training images; "" if nothing."""
        return ""

    def prepare(self, view: Split, *, among: Among = ALONE, resumed: bool = False) -> None:
        """Compute what is needed before the first step, from the training images in evaluation view.

        Of a run that is `resumed`, companions are restored after this call: what they hold need not be computed.
        """

    def prepared(self) -> str:
        """Return a line on what `prepare` has computed; "" if there is nothing to say."""
        return ""

    @abstractmethod
    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Return augmented images at `img_size` with their targets. Every draw is keyed by seed, epoch and image."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute "loss", a mean over the batch; the other entries are logged, and are means over the batch too."""

    def before_step(self, *, step: int, epoch: int, progress: float) -> None:
        """Set what follows a schedule before step `step`, counted from 0; `progress` is the share of the run behind it.

        A recorded step repeats the numbers of its recording: values that `forward` reads belong in tensors, filled in place.
        """

    def leaves_parameters_out(self) -> bool:
        """Return whether some trained parameters get no gradient from the loss; processes then look for them at each step."""
        return False

    def after_step(self, step: int) -> None:
        """Update modules that follow the weights, such as a running mean, after optimizer step `step`, counted from 0."""

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
        """Compute scores on a split in evaluation view, of `model` (such as a running mean) if given, else of the product.

        Return None if the task has no score for such a split.
        """

    def calibrate(
        self,
        split: Split,
        *,
        model: Backbone | None = None,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        among: Among = ALONE,
    ) -> Calibration | None:
        """Fit what the card says of the model's probabilities to a split that it was not trained on; None: nothing to fit."""
        return None

    def picture(self, split: Split, *, device: torch.device, autocast_dtype: torch.dtype | None = None) -> Image.Image | None:
        """Draw the task's outputs for some images of a split in evaluation view; None if there is nothing to show.

        Random draws of a picture are keyed, and do not affect training.
        """
        return None

    def collapse_advice(self, cause: CollapseCause) -> str:
        """Return what to change after a collapse, as one clause with the settings and their values."""
        return "lower optim.lr, or lengthen optim.warmup"

    def prototypes_in_use(self) -> float | None:
        """Return the effective number of prototypes in the targets since the last call, for the guard: 1 is one for all images.

        None for a task without prototypes that learn, and where too few steps can tell.
        """
        return None

    def spread(self) -> float | None:
        """Return the share of the output dimensions in use since the last call, for the guard: 0 is one output for all images.

        None for a task whose outputs are not to be normally distributed, and where too few steps can tell.
        """
        return None

    def product(self) -> Backbone:
        """Return the model to save, export and serve."""
        return self.model

    def companions(self) -> dict[str, nn.Module]:
        """Return the submodules that are checkpointed beside the model, by name."""
        return {name: module for name, module in self.named_children() if module is not self.model}

"""Base of the tasks that learn without labels: augmentation without mixing, and scores of the embedding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vitrail.data.augment import augment
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.evaluate.embedding import EmbeddingScores, evaluate_embedding, has_classes, known_images
from vitrail.evaluate.evaluate import ALONE, Among
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, Pair, Preprocessing
from vitrail.tasks.task import Task


class Unsupervised(Task):
    """Task without labels. Classes, where images have some, are for the k-NN score alone.

    `known` are training images in evaluation view among which k-NN looks for neighbours; with `neighbours`, `prepare` takes
    them. Without them, or without classes, the images of a split are neighbours of each other.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        augment: AugmentConfig,
        seed: int,
        known: Split | None = None,
        neighbours: bool = False,
    ) -> None:
        super().__init__(model, preprocessing=preprocessing)
        self.augment, self.seed, self.neighbours = replace(augment, mixup_alpha=0.0, cutmix_alpha=0.0), seed, neighbours
        self.known = None if known is None or not has_classes(known) else known_images(known, seed=seed)

    def preparation(self, images: int, *, resumed: bool = False) -> str:
        """See Task.preparation: reads the training images of the k-NN score."""
        return "reading training images in evaluation view, for the k-NN score" if self.neighbours else ""

    def prepare(self, view: Split, *, among: Among = ALONE, resumed: bool = False) -> None:
        """Keep the training images among which k-NN looks for neighbours."""
        self.known = known_images(view, seed=self.seed)

    def augmented(self, raw: RawBatch, *, epoch: int, img_size: Pair) -> Batch:
        """Return augmented images without targets."""
        return augment(
            replace(raw, targets=torch.zeros(len(raw), 0)),
            cfg=self.augment,
            preprocessing=replace(self.preprocessing, img_size=img_size),
            num_classes=0,
            seed=self.seed,
            epoch=epoch,
            apply=self.apply_colors,
        )

    def evaluate(
        self,
        split: Split,
        *,
        model: Backbone | None = None,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        among: Among = ALONE,
    ) -> EmbeddingScores:
        """Score the pooled embedding of the product: effective rank, and k-NN accuracy for images of two or more classes."""
        return evaluate_embedding(
            self.product() if model is None else model,
            split,
            known=self.known,
            preprocessing=self.preprocessing,
            device=device,
            autocast_dtype=autocast_dtype,
            among=among,
        )


def leaves_out(model: nn.Module, output: Tensor) -> bool:
    """Return whether some trained parameters of a model get no gradient from an output."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output.float().sum(), learning, allow_unused=True) if learning else ()
    return any(gradient is None for gradient in gradients)

"""Adds a task in one file: predict by how many quarter turns an image was rotated (Gidaris et al. 2018), without labels.

    python examples/add_a_task.py                    half a minute on the sample that comes with the package
    python examples/add_a_task.py --steps 20

A task is a `Task` and a row of TASKS. This one is an `Unsupervised` task, whose scores are there already. Loop, checkpoints,
resuming and several processes take it as it is.
"""

# B batch · C channels · H W image · E embedding

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitrail
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.data.draws import Draws
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, Pair, Preprocessing, Settings
from vitrail.tasks import TASKS, TaskSpec
from vitrail.tasks.unsupervised import Unsupervised

TURNS = 4


class Rotation(Unsupervised):
    """A linear head beside the backbone tells apart images turned by 0, 90, 180 and 270 degrees."""

    def __init__(self, model: Backbone, *, preprocessing: Preprocessing, augment: AugmentConfig, seed: int) -> None:
        super().__init__(model, preprocessing=preprocessing, augment=augment, seed=seed)
        with torch.no_grad():
            blank = torch.zeros(1, preprocessing.in_channels, *preprocessing.img_size)
            width = model.features(blank.to(next(model.parameters()))).pooled.shape[1]
        self.head = nn.Linear(width, TURNS)  # a companion: trained and checkpointed with the model, and no part of the product

    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Augmented images, each turned as its draw says; the turn is the target."""
        batch = self.augmented(raw, epoch=epoch, img_size=img_size)
        draws = Draws(seed=self.seed, epoch=epoch, indexes=raw.indexes, turns=raw.turns)
        turns = draws.integers("rotation", high=TURNS).flatten()
        images = torch.stack([image.rot90(int(turn), dims=(1, 2)) for image, turn in zip(batch.images, turns, strict=True)])
        return replace(batch, images=images, targets=F.one_hot(turns, TURNS).float(), patch_size=patch_size)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """ "loss", and the share of turns that are told right."""
        logits = self.head(self.model.features(batch.images).pooled).float()
        right = logits.detach().argmax(dim=1) == batch.targets.argmax(dim=1)
        return {"loss": F.cross_entropy(logits, batch.targets), "accuracy": right.float().mean()}


def rotation_task(
    settings: Settings,
    model: Backbone,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Rotation:
    """The task of a run."""
    return Rotation(model, preprocessing=preprocessing, augment=settings.augment, seed=settings.train.seed).to(device)


TASKS["rotation"] = TaskSpec(build=rotation_task, supervised=False, recipe="mae-small", unused=("mae", "distill"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Learns rotations of the embedded sample, and scores the embedding.")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        run = vitrail.pretrain(
            method="rotation",
            out=Path(place, "rotation"),
            model={"name": "Ti/4", "depth": 3, "embed_dim": 96},
            augment={"flip": 0.0},
            train={"steps": args.steps, "batch_size": 128, "device": "cpu", "precision": "fp32"},
        )
        name, value, (low, high) = run.evaluation.headline
        print(
            f"{name} {value:.1%} ({low:.1%} to {high:.1%}); the model has {vitrail.load(run.folder).config.num_classes} classes"
        )


if __name__ == "__main__":
    main()

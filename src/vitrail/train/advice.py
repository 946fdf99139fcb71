"""Fine-tuning from facts: what the data, the machine and the time allow -> settings, each with its reason.

One table, one row for each order of magnitude of images. Where the numbers come from: the fewer the images, the more the
weights have to stay where they are (layer decay, low rate) and the longer an epoch count has to be to give enough steps
(Steiner et al. 2021, section 4.5; Touvron et al. 2022, table 9; Bao et al. 2022 and He et al. 2022, both table 9).
Mixing and RandAugment help from some thousand images on and cost accuracy below (Steiner et al. 2021, figure 4). What crops
cost small images, and that the head starts at the probe, is our own measurement (dev/LOG.md, benchmarks/transfer.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from vitrail.models.describe import Description, describe_model
from vitrail.settings import Pair, pair


class Row(NamedTuple):
    """Settings for up to so many training images."""

    images: float
    epochs: int
    batch_size: int
    lr: float
    layer_decay: float
    drop_path_rate: float
    augment: dict[str, Any]
    words: str


# Each says all that the recipe "finetune" below it says.
LIGHT: dict[str, Any] = {"crop_scale": [0.35, 1.0], "color_jitter": 0.2, "rand_augment": None, "erase_prob": 0.0}
MEDIUM: dict[str, Any] = {"crop_scale": [0.2, 1.0], "rand_augment": {"n": 2, "m": 6.0}, "erase_prob": 0.1}
STRONG: dict[str, Any] = {
    "crop_scale": [0.08, 1.0],
    "rand_augment": {"n": 2, "m": 9.0},
    "erase_prob": 0.25,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "mixup_prob": 0.5,
}

TABLE = (  #  images  epochs batch  lr at 1024  decay  drop path
    Row(1_000, 50, 32, 4e-3, 0.65, 0.0, LIGHT, "crops, flips and colours only: mixing costs accuracy on so few"),
    Row(10_000, 25, 64, 3e-3, 0.7, 0.05, MEDIUM, "RandAugment of medium strength"),
    Row(100_000, 12, 128, 2e-3, 0.75, 0.1, STRONG, "RandAugment, mixup, cutmix and erasing"),
    Row(float("inf"), 6, 256, 2e-3, 0.8, 0.1, STRONG, "RandAugment, mixup, cutmix and erasing"),
)

SMALL = 64
"""Side in pixels up to which images are all subject: small crops and jittered colours cost them accuracy."""
SMALL_CROPS: dict[str, Any] = {"crop_scale": [0.7, 1.0], "color_jitter": 0.0}

PRETRAINED = {  # what is fetched where no weights are named: a size that the device trains in reasonable time
    "cpu": "timm/vit_tiny_patch16_224.augreg_in21k",
    "mps": "timm/vit_small_patch16_224.augreg_in21k",
    "cuda": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
}
MEMORY_SHARE = 0.6
"""Of the device's memory that activations may take; weights, gradients, optimizer and the images themselves need the rest."""
LEAST_STEPS = 500
"""Below, a fresh head has hardly moved."""
RARE = 3.0
"""Largest over smallest class from which on the sampler balances them."""


@dataclass(frozen=True)
class Facts:
    """What there is to go by."""

    images: int
    """For training."""
    class_counts: tuple[int, ...]
    side: int | None
    """Shorter side of the data set's images in pixels; None for photographs."""
    device: str
    """cpu, cuda, mps."""
    memory_bytes: int
    """Of the device."""
    minutes: float | None
    """The time budget; None for none."""
    model: Any
    """Config of the weights."""
    side_unit: Pair
    """Pixels that the sides of images are multiples of."""
    multi_label: bool = False
    """Whether an image may have any number of labels: then there is no class to draw by, and nothing to smooth."""


class Reason(NamedTuple):
    """Why some settings are what they are."""

    keys: tuple[str, ...]
    """Such as "optim.lr"."""
    text: str


@dataclass(frozen=True)
class Advice:
    """Settings, and why."""

    layer: dict[str, dict[str, Any]]
    reasons: tuple[Reason, ...]

    def said_of(self, others: Collection[str]) -> list[str]:
        """The reasons that still hold where somebody set some keys otherwise."""
        return [reason.text for reason in self.reasons if not set(reason.keys) & set(others)]


def advise(facts: Facts) -> Advice:
    """The row of `TABLE` for so many images, fitted to resolution, memory, time and balance; ten reasons at most."""
    row = next(row for row in TABLE if facts.images <= row.images)
    classes = len(facts.class_counts)
    size, why_size = resolution(facts)
    batch, parts, why_batch = batch_for(replace(facts.model, img_size=size), facts, row.batch_size)
    lr = row.lr * row.batch_size / batch  # a batch made small by lack of images learns at the rate of the table's
    epochs = max(row.epochs, -(-LEAST_STEPS // max(1, facts.images // batch)))
    small = max(size) <= SMALL
    length: dict[str, Any] = {"epochs": epochs} if facts.minutes is None else {"minutes": facts.minutes}
    layer: dict[str, dict[str, Any]] = {
        "model": {"img_size": list(size), "drop_path_rate": row.drop_path_rate},
        "augment": row.augment | (SMALL_CROPS if small else {}),
        "optim": {"name": "adamw", "lr": lr, "layer_decay": row.layer_decay, "weight_decay": 0.05, "warmup": 0.1},
        "train": {**length, "batch_size": batch, "accumulate": parts, "eval_every": max(1, epochs // 10)},
    }
    smoothed = facts.images > TABLE[0].images and not facts.multi_label
    layer["optim"]["label_smoothing"] = 0.1 if smoothed else 0.0  # said either way: the recipe below has some
    steps = epochs * max(1, facts.images // batch)
    counted = f"{facts.images:,} images, {facts.images / max(1, classes):.0f} a class"
    reasons = [
        Reason(("model.img_size",), f"{size[0]}x{size[1]} px: {why_size}"),
        Reason(
            ("optim.lr", "optim.layer_decay"),
            f"learning rate {lr:g} at batch 1024, {row.layer_decay:g} of it for each block further down: {counted}",
        ),
        Reason(("train.batch_size",), f"batch {batch}" + (f" in {parts} parts" if parts > 1 else "") + f": {why_batch}"),
        Reason(
            ("augment.rand_augment", "augment.crop_scale"),
            f"augmentation: {row.words}"
            + (f"; crops keep 0.7, and colours stay: {max(size)} px are all subject" if small else ""),
        ),
    ]
    if facts.minutes is None:
        text = f"{epochs} epochs: {steps:,} steps are enough for weights that only have to adapt"
        reasons.append(Reason(("train.epochs", "train.steps", "train.batch_size"), text))
    present = [count for count in facts.class_counts if count]
    if present and max(present) >= RARE * min(present) and not facts.multi_label:
        layer["data"] = {"balance": "sampler"}
        text = f"classes drawn equally often: they have {min(present):,} to {max(present):,} images"
        reasons.append(Reason(("data.balance",), text))
    return Advice(layer, tuple(reasons))


def resolution(facts: Facts) -> tuple[Pair, str]:
    """The weights' own size; for small images less, in whole patches: enlarging adds cost and no detail."""
    own, patch = pair(facts.model.img_size), facts.side_unit
    if facts.side is None or 2 * facts.side >= min(own):
        return own, "the size of the weights"
    side = max(6, -(-2 * facts.side // patch[0])) * patch[0]
    if side >= min(own):
        return own, "the size of the weights"
    return (side, side), f"the images have {facts.side} px; {own[0]} would cost {(own[0] / side) ** 2:.1f} times as much"


def batch_for(model: Any, facts: Facts, wanted: int) -> tuple[int, int, str]:
    """Batch, parts it is computed in, and why: what the table says, as far as there are images, in parts that fit memory."""
    batch = wanted
    while batch > 8 and batch * 8 > facts.images:  # eight steps an epoch at least
        batch //= 2
    cost, parts = describe_model(model), 1
    if isinstance(cost, Description):
        each = cost.training_bytes if facts.device == "cpu" else cost.training_bytes_bf16
        room = MEMORY_SHARE * facts.memory_bytes - 4 * cost.weights_bytes  # weights, gradients, two moments
        while parts < batch and each * batch / parts > room:
            parts *= 2
    why = "usual for so many images" if batch == wanted else "eight steps an epoch at least"
    return batch, parts, why if parts == 1 else f"{why}; a part fits {facts.memory_bytes / 1e9:.0f} GB"


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

"""Fine-tuning settings from data, device and time budget, each with its reason.

One table, one row for each order of magnitude of images. Where the numbers come from: the fewer the images, the more the
weights have to stay where they are (layer decay, low rate) and the longer an epoch count has to be to give enough steps
(Steiner et al. 2021, section 4.5; Touvron et al. 2022, table 9; Bao et al. 2022 and He et al. 2022, both table 9).
Mixing and RandAugment help from some thousand images on and cost accuracy below (Steiner et al. 2021, figure 4). What crops
cost small images, that the head starts at the probe, and that weights which have seen little are trained as random ones, is our
own measurement (dev/LOG.md, benchmarks/transfer.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from vitrail.models.counts import Passes
from vitrail.settings import Pair, layers, pair


class TransferRow(NamedTuple):
    """Settings for at most `images` training images."""

    images: float
    epochs: int
    batch_size: int
    lr: float
    layer_decay: float
    drop_path_rate: float
    augment: dict[str, Any]
    augment_reason: str


# Each sets every augmentation of the recipe "finetune", so that nothing of the recipe shows through.
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
    TransferRow(1_000, 50, 32, 4e-3, 0.65, 0.0, LIGHT, "crops, flips and colours only: mixing costs accuracy on so few"),
    TransferRow(10_000, 25, 64, 3e-3, 0.7, 0.05, MEDIUM, "RandAugment of medium strength"),
    TransferRow(100_000, 12, 128, 2e-3, 0.75, 0.1, STRONG, "RandAugment, mixup, cutmix and erasing"),
    TransferRow(float("inf"), 6, 256, 2e-3, 0.8, 0.1, STRONG, "RandAugment, mixup, cutmix and erasing"),
)

LITTLE_SEEN = 10_000_000
"""Images, each pass counted, below which weights have learned too little to be kept where there are more than the first row's
images to learn from (dev/LOG.md)."""

SMALL_SIDE_PX = 64
"""Side in pixels up to which images are all subject: small crops and jittered colours cost them accuracy."""
SMALL_CROPS: dict[str, Any] = {"crop_scale": [0.7, 1.0], "color_jitter": 0.0}

STARTS: dict[str, dict[str, str]] = {  # weights by their pre-training: a size that each device trains in reasonable time
    "augreg": {  # with labels, ImageNet-21k
        "cpu": "timm/vit_tiny_patch16_224.augreg_in21k",
        "mps": "timm/vit_small_patch16_224.augreg_in21k",
        "cuda": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    },
    "dinov3": {  # without labels; a licence of its own
        "cpu": "timm/vit_small_patch16_dinov3.lvd1689m",
        "mps": "timm/vit_small_patch16_dinov3.lvd1689m",
        "cuda": "timm/vit_base_patch16_dinov3.lvd1689m",
    },
    "siglip2": {  # with captions; B/32 has a quarter of the tokens of B/16
        "cpu": "timm/vit_base_patch32_siglip_256.v2_webli",
        "mps": "timm/vit_base_patch32_siglip_256.v2_webli",
        "cuda": "timm/vit_base_patch16_siglip_256.v2_webli",
    },
}
DEFAULT_START = "augreg"
OTHER_STARTS = tuple(name for name in STARTS if name != DEFAULT_START)
MEMORY_SHARE = 0.6
"""Share of the device's memory for activations; weights, gradients, optimizer and the images themselves need the rest."""
MIN_STEPS = 500
"""Least optimizer steps of a run: after fewer, a fresh head has hardly moved."""
IMBALANCE = 3.0
"""Ratio of largest to smallest class from which on the sampler balances classes."""


@dataclass(frozen=True)
class Facts:
    """Data, device, time budget and model that settings are fitted to."""

    images: int
    """Number of training images."""
    class_counts: tuple[int, ...]
    side: int | None
    """Shorter side of the data set's images in pixels; None for photographs."""
    device: str
    """cpu, cuda, mps."""
    memory_bytes: int
    """Memory of the device."""
    minutes: float | None
    """Time budget; None for none."""
    model: Any
    """Config of the weights."""
    side_unit: Pair
    """Unit in pixels of image height and width: sides are its multiples."""
    multi_label: bool = False
    """True where an image may have any number of labels: then there is no class to draw by, and nothing to smooth."""
    images_seen: int | None = None
    """Images that the weights were trained on, each pass counted; None: not known, as of anybody else's weights."""
    recipe: str = "from-scratch"
    """Recipe of a run from random weights on this data."""


class Reason(NamedTuple):
    """Reason for the values of some settings."""

    keys: tuple[str, ...]
    """Names of the settings, such as "optim.lr"."""
    text: str


@dataclass(frozen=True)
class Advice:
    """Fitted settings and their reasons."""

    layer: dict[str, dict[str, Any]]
    reasons: tuple[Reason, ...]

    def reasons_without(self, overridden: Collection[str]) -> list[str]:
        """Return the reasons for settings that are not overridden."""
        return [reason.text for reason in self.reasons if not set(reason.keys) & set(overridden)]


def advise(facts: Facts) -> Advice:
    """Return the row of `TABLE` for the number of images, fitted to resolution, memory, time and class balance.

    Weights that have seen little, and more than a few images to learn from: the recipe of a run from random weights instead.
    """
    seen = facts.images_seen
    little = seen is not None and seen < LITTLE_SEEN and facts.images > TABLE[0].images
    size, why_size = choose_resolution(facts)
    given = as_from_scratch(facts, size) if little else from_table(facts, size)
    epochs, batch = given.layer["train"]["epochs"], given.layer["train"]["batch_size"]
    if facts.minutes is not None:
        given.layer["train"] = {"minutes": facts.minutes, **given.layer["train"]}
        del given.layer["train"]["epochs"]
    given.layer["model"]["img_size"] = list(size)
    if facts.multi_label:
        given.layer["optim"]["label_smoothing"] = 0.0
    reasons = [Reason(("model.img_size",), f"{size[0]}x{size[1]} px: {why_size}"), *given.reasons]
    if facts.minutes is None:
        enough = "" if little else " are enough for weights that only have to adapt"
        text = f"{epochs} epochs: {epochs * max(1, facts.images // batch):,} steps{enough}"
        reasons.append(Reason(("train.epochs", "train.steps", "train.batch_size"), text))
    present = [count for count in facts.class_counts if count]
    if present and max(present) >= IMBALANCE * min(present) and not facts.multi_label:
        given.layer["data"] = {"balance": "sampler"}
        text = f"classes drawn equally often: they have {min(present):,} to {max(present):,} images"
        reasons.append(Reason(("data.balance",), text))
    return Advice(given.layer, tuple(reasons))


def from_table(facts: Facts, size: Pair) -> Advice:
    """Return the settings of the row of `TABLE` for the number of images."""
    row = next(row for row in TABLE if facts.images <= row.images)
    batch, parts, why_batch = choose_batch(replace(facts.model, img_size=size), facts, row.batch_size)
    lr = row.lr * row.batch_size / batch  # a batch smaller than the table's keeps the learning rate of the table's
    epochs = least_epochs(row.epochs, facts.images, batch)
    small = max(size) <= SMALL_SIDE_PX
    layer: dict[str, dict[str, Any]] = {
        "model": {"drop_path_rate": row.drop_path_rate},
        "augment": row.augment | (SMALL_CROPS if small else {}),
        "optim": {"name": "adamw", "lr": lr, "layer_decay": row.layer_decay, "weight_decay": 0.05, "warmup": 0.1},
        "train": {"epochs": epochs, "batch_size": batch, "accumulate": parts, "eval_every": max(1, epochs // 10)},
    }
    smoothed = facts.images > TABLE[0].images
    layer["optim"]["label_smoothing"] = 0.1 if smoothed else 0.0  # set in either case: the recipe below smooths
    each = f"{facts.images:,} images, {facts.images / max(1, len(facts.class_counts)):.0f} a class"
    decay = f"learning rate {lr:g} at batch 1024, {row.layer_decay:g} of it for each block further down: {each}"
    crops = f"; crops keep 0.7, and colours stay: {max(size)} px are all subject" if small else ""
    reasons = (
        Reason(("optim.lr", "optim.layer_decay"), decay),
        batch_reason(batch, parts, why_batch),
        Reason(("augment.rand_augment", "augment.crop_scale"), f"augmentation: {row.augment_reason}{crops}"),
    )
    return Advice(layer, reasons)


def as_from_scratch(facts: Facts, size: Pair) -> Advice:
    """Return optimizer, augmentation and length of the recipe of a run from random weights."""
    layer = layers.read_recipe(facts.recipe)
    recipe = layers.build([layer])
    batch, parts, why_batch = choose_batch(replace(facts.model, img_size=size), facts, recipe.train.batch_size)
    epochs = least_epochs(int(recipe.train.epochs or TABLE[1].epochs), facts.images, batch)
    length = {"epochs": epochs, "batch_size": batch, "accumulate": parts, "eval_every": max(1, epochs // 10)}
    fitted = {
        "model": {"drop_path_rate": layer["model"].get("drop_path_rate", 0.0)},
        "augment": above_finetune(layer, "augment"),
        "optim": above_finetune(layer, "optim") | {"layer_decay": 1.0},
        "train": length | {"ema_decay": recipe.train.ema_decay},
    }
    why = f"the weights have seen {facts.images_seen:,} images, each pass counted, which is too little to be kept"
    keys = ("optim.name", "optim.lr", "optim.layer_decay", "augment.crop_scale")
    reasons = (Reason(keys, f"optimizer, learning rate and augmentation of {facts.recipe}: {why}"),)
    return Advice(fitted, (*reasons, batch_reason(batch, parts, why_batch)))


def above_finetune(layer: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return a section of a layer, with the defaults of what the recipe "finetune", which lies below, sets besides."""
    default, below = getattr(layers.build([]), section), layers.read_recipe("finetune")[section]
    return {key: getattr(default, key) for key in below} | layer.get(section, {})


def least_epochs(epochs: int, images: int, batch: int) -> int:
    """Return the epochs, more of them where they are fewer than `MIN_STEPS` steps."""
    return max(epochs, -(-MIN_STEPS // max(1, images // batch)))


def batch_reason(batch: int, parts: int, why: str) -> Reason:
    """Return the reason for a batch size."""
    return Reason(("train.batch_size",), f"batch {batch}" + (f" in {parts} parts" if parts > 1 else "") + f": {why}")


def choose_resolution(facts: Facts) -> tuple[Pair, str]:
    """Return image size and reason: the size of the weights, or fewer patches for small images, where more only cost."""
    pretrained_size, patch = pair(facts.model.img_size), facts.side_unit
    if facts.side is None or 2 * facts.side >= min(pretrained_size):
        return pretrained_size, "the size of the weights"
    side = max(6, -(-2 * facts.side // patch[0])) * patch[0]
    if side >= min(pretrained_size):
        return pretrained_size, "the size of the weights"
    full = pretrained_size[0]
    return (side, side), f"the images have {facts.side} px; {full} would cost {(full / side) ** 2:.1f} times as much"


def choose_batch(model: Any, facts: Facts, table_batch: int) -> tuple[int, int, str]:
    """Return batch size, number of parts that it is accumulated over, and reason.

    The batch is the table's, halved until an epoch has eight steps; a part fits the device's memory.
    """
    batch = table_batch
    while batch > 8 and batch * 8 > facts.images:  # eight steps an epoch at least
        batch //= 2
    bf16, parts = facts.device != "cpu", 1
    passes = Passes(model)
    room = MEMORY_SHARE * facts.memory_bytes - 4 * passes.weights_bytes  # weights, gradients, two moments
    while parts < batch and passes.train(batch // parts, backward=False, bf16=bf16, fused=bf16).kept > room:
        parts *= 2
    why = "usual for so many images" if batch == table_batch else "eight steps an epoch at least"
    return batch, parts, why if parts == 1 else f"{why}; a part fits {facts.memory_bytes / 1e9:.0f} GB"


def device_memory(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

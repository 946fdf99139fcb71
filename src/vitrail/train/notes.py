"""What is said once, at the start of a run: settings that have no effect beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitrail.models.backbone import Backbone
from vitrail.settings import SCRATCH, AugmentConfig, DistillConfig, OptimConfig, Settings, TrainConfig, pair
from vitrail.tasks import TASKS
from vitrail.train.sizes import sizes_over

Said = Mapping[str, Mapping[str, Any]]
"""Sections of settings that somebody typed; a default that was typed is meant too."""


def unused(settings: Settings, model: Backbone, *, said: Said | None = None, multi_label: bool = False) -> list[str]:
    """One line for each setting that is not its default, or was `said`, and does not do what it says beside the others.

    `model` is that of the settings, on the meta device. `multi_label` is of the data: whether an image may have any number
    of labels.
    """
    typed = {f"{section}.{name}": value for section, fields in (said or {}).items() for name, value in fields.items()}
    told = {
        **of_the_images(settings.augment),
        **of_the_weights(settings, model),
        **of_the_sizes(settings, model),
        **of_the_ladder(settings, typed, multi_label=multi_label),
        **of_the_targets(settings, typed, multi_label=multi_label),
        **of_a_teacher(settings, model),
    }
    never = of_the_task(settings, typed)
    told = {text: is_unused for text, is_unused in told.items() if not text.startswith(tuple(never))}
    lines = [text for text, is_unused in told.items() if is_unused] + list(never.values())
    return [f"{text}; it has no effect here" for text in lines] + consequences(settings, model)


# --------------------------------------------------------------------------------------------------------------------
# Why a setting has no effect -> whether it is so here


def of_the_task(settings: Settings, typed: Mapping[str, Any]) -> dict[str, str]:
    """What the task leaves unused although it is set: the setting or section -> its line."""
    found, task = {}, settings.train.task
    for entry in TASKS[task].unused:
        key, _, value = entry.partition(" ")
        section, _, name = key.partition(".")
        own, default = getattr(settings, section), type(getattr(settings, section))()
        if not name:
            if own != default or any(other.startswith(f"{section}.") for other in typed):
                found[section] = f"{section}'s settings are not used by train.task {task}"
        elif value:
            if getattr(own, name) == value:
                found[key] = f"{key} {value} is not used by train.task {task}"
        elif key in typed or getattr(own, name) != getattr(default, name):
            found[key] = f"{key} is not used by train.task {task}"
    return found


def of_the_images(cfg: AugmentConfig) -> dict[str, bool]:
    """Mixing and cropping."""
    default, mixing = AugmentConfig(), bool(cfg.mixup_alpha or cfg.cutmix_alpha)
    return {
        "augment.mixup_prob needs mixup_alpha or cutmix_alpha above 0": cfg.mixup_prob != default.mixup_prob and not mixing,
        "augment.mixup_alpha and cutmix_alpha need mixup_prob above 0": mixing and cfg.mixup_prob == 0,
        "augment.switch_prob needs both mixup_alpha and cutmix_alpha above 0": cfg.switch_prob != default.switch_prob
        and not (cfg.mixup_alpha and cfg.cutmix_alpha),
        "augment.crop_scale is for augment.crop resized": cfg.crop != "resized" and cfg.crop_scale != default.crop_scale,
        "augment.crop_ratio is for augment.crop resized": cfg.crop != "resized" and cfg.crop_ratio != default.crop_ratio,
        "augment.crop_pad is for augment.crop pad": cfg.crop != "pad" and cfg.crop_pad != default.crop_pad,
    }


def of_the_weights(settings: Settings, model: Backbone) -> dict[str, bool]:
    """How they move."""
    optim, default = settings.optim, OptimConfig()
    depth = len(model.blocks_in_order())
    return {
        f"optim.name muon is for a Transformer's blocks, and AdamW moves all of {settings.model.name}": optim.name == "muon"
        and not depth,
        "optim.layer_decay reaches blocks, and optim.freeze leaves none to learn": optim.layer_decay != 1
        and optim.frozen(depth) >= depth > 0,
        "optim.betas has no second use: SGD takes the first as momentum": optim.name == "sgd"
        and optim.betas[1] != default.betas[1],
    }


def of_the_sizes(settings: Settings, model: Backbone) -> dict[str, bool]:
    """Sides and patches over the run."""
    train, default = settings.train, TrainConfig()
    staged = train.size_stages != default.size_stages or train.full_size_from != default.full_size_from
    patches = set(map(pair, train.patch_sizes))
    return {
        "train.size_stages and full_size_from need train.start_size": train.start_size is None and staged,
        f"train.start_size {train.start_size} is the full size already": train.start_size is not None
        and len(sizes_over(train, model)) == 1,
        f"train.patch_sizes {', '.join(map(str, train.patch_sizes))} is the model's own patch and no other": patches
        == {model.side_unit},
    }


def of_the_ladder(settings: Settings, typed: Mapping[str, Any], *, multi_label: bool) -> dict[str, bool]:
    """k-NN and the probe, which come first where there are weights to start from."""
    train, weights = settings.train, settings.model.weights not in (None, SCRATCH)
    climbs = weights and train.ladder
    return {
        "train.ladder needs model.weights": typed.get("train.ladder") is True and not weights,
        "train.ladder needs images of one class each": climbs and multi_label,
        "train.probe_head needs model.weights and train.ladder": typed.get("train.probe_head") is True and not climbs,
        "train.stop_early needs model.weights and train.ladder": train.stop_early and not climbs,
        "train.stop_early needs images of one class each": train.stop_early and climbs and multi_label,
    }


def of_the_targets(settings: Settings, typed: Mapping[str, Any], *, multi_label: bool) -> dict[str, bool]:
    """The loss and what it is held to."""
    optim = settings.optim
    return {
        "optim.loss ce chooses one class an image, and bce is for any number of labels": multi_label
        and typed.get("optim.loss") == "ce",
        "optim.label_smoothing is for images of one class each, and these have any number of labels": multi_label
        and optim.label_smoothing > 0,
        "optim.label_smoothing is for optim.loss ce": optim.label_smoothing > 0 and optim.loss == "bce" and not multi_label,
    }


def of_a_teacher(settings: Settings, model: Backbone) -> dict[str, bool]:
    """Distillation."""
    told, default, random = settings.distill, DistillConfig(), settings.model.weights in (None, SCRATCH)
    return {
        "distill's settings need distill.teacher": told.teacher is None and told != default,
        "distill.tau is for distill.kind soft": told.teacher is not None and told.kind == "hard" and told.tau != default.tau,
        "distill.teacher needs distill.alpha above 0": told.teacher is not None and told.alpha == 0,
        "model.dist_token learns from distill.teacher; without one it is a second class token": len(model.heads) > 1
        and told.teacher is None
        and random,
    }


def long_warmup(warmup: float, steps: int | None) -> str | None:
    """A line for a warm-up, in steps, that the run never gets to the end of; None where it does."""
    if steps is None or warmup < 1 or warmup < steps:
        return None
    return f"optim.warmup {warmup:g} steps is longer than the run of {steps:,}: the learning rate never reaches optim.lr"


def consequences(settings: Settings, model: Backbone) -> list[str]:
    """What settings do beside each other that one may not expect."""
    train, optim, notes = settings.train, settings.optim, []
    if train.accumulate > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        notes.append(f"train.accumulate {train.accumulate}: the batch norms of {settings.model.name} see one part at a time")
    if optim.freeze and settings.model.weights in (None, SCRATCH):
        notes.append(f"optim.freeze {optim.freeze}: random weights stay as they are there; --weights W starts from others")
    return notes

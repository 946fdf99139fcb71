"""Notes at the start of a run: settings that have no effect beside the others, and side effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitrail.models.backbone import Backbone
from vitrail.models.device import pick_device
from vitrail.settings import (
    SCRATCH,
    AugmentConfig,
    BeitPretrainConfig,
    DistillConfig,
    OptimConfig,
    Settings,
    TrainConfig,
    pair,
)
from vitrail.settings.masked import PIXELS
from vitrail.tasks import TASKS
from vitrail.train.sizes import list_sizes

Overrides = Mapping[str, Mapping[str, Any]]
"""Sections of settings that the user set; one set to its default counts."""


def find_unused(
    settings: Settings, model: Backbone, *, overrides: Overrides | None = None, multi_label: bool = False
) -> list[str]:
    """Return one line for each setting that differs from its default, or is in `overrides`, and has no effect.

    `model` is that of the settings, on the meta device. `multi_label` is True for data whose images have any number of labels.
    """
    typed = {f"{section}.{name}": value for section, fields in (overrides or {}).items() for name, value in fields.items()}
    conditions = {
        **augment_conditions(settings.augment),
        **optim_conditions(settings, model),
        **length_conditions(settings, typed),
        **size_conditions(settings, model),
        **ladder_conditions(settings, typed, multi_label=multi_label),
        **loss_conditions(settings, typed, multi_label=multi_label),
        **distill_conditions(settings, model),
        **beit_conditions(settings.beit),
    }
    by_task = list_unused_by_task(settings, typed)
    conditions = {text: is_unused for text, is_unused in conditions.items() if not text.startswith(tuple(by_task))}
    lines = [text for text, is_unused in conditions.items() if is_unused] + list(by_task.values())
    return [f"{text}; it has no effect here" for text in lines] + list_side_effects(settings, model)


# --------------------------------------------------------------------------------------------------------------------
# Conditions: reason why a setting has no effect -> True where it holds


def list_unused_by_task(settings: Settings, typed: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings or sections that are set and not used by the task, each with its line."""
    unused, task = {}, settings.train.task
    for entry in TASKS[task].unused:
        key, _, value = entry.partition(" ")
        section, _, name = key.partition(".")
        actual, default = getattr(settings, section), type(getattr(settings, section))()
        if not name:
            if actual != default or any(other.startswith(f"{section}.") for other in typed):
                unused[section] = f"{section}'s settings are not used by train.task {task}"
        elif value:
            if getattr(actual, name) == value:
                unused[key] = f"{key} {value} is not used by train.task {task}"
        elif key in typed or getattr(actual, name) != getattr(default, name):
            unused[key] = f"{key} is not used by train.task {task}"
    return unused


def augment_conditions(cfg: AugmentConfig) -> dict[str, bool]:
    """Conditions for mixing and cropping."""
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


def optim_conditions(settings: Settings, model: Backbone) -> dict[str, bool]:
    """Conditions for the optimizer."""
    optim, default = settings.optim, OptimConfig()
    depth = len(model.blocks_in_order())
    return {
        f"optim.name muon is for a Transformer's blocks, and AdamW updates all of {settings.model.name}": optim.name == "muon"
        and not depth,
        "optim.layer_decay is for trainable blocks, and optim.freeze freezes them all": optim.layer_decay != 1
        and optim.frozen(depth) >= depth > 0,
        "optim.betas[1] is not used by SGD, whose momentum is betas[0]": optim.name == "sgd"
        and optim.betas[1] != default.betas[1],
    }


def length_conditions(settings: Settings, typed: Mapping[str, Any]) -> dict[str, bool]:
    """Conditions for the measured pace of a run of minutes."""
    return {
        f"train.{name} is for a run of minutes": f"train.{name}" in typed and settings.train.minutes is None
        for name in ("min_epochs", "smaller")
    }


def size_conditions(settings: Settings, model: Backbone) -> dict[str, bool]:
    """Conditions for image and patch sizes over the run."""
    train, default = settings.train, TrainConfig()
    staged = train.size_stages != default.size_stages or train.full_size_from != default.full_size_from
    patches = set(map(pair, train.patch_sizes))
    return {
        "train.size_stages and full_size_from need train.start_size": train.start_size is None and staged,
        f"train.start_size {train.start_size} is the full size already": train.start_size is not None
        and len(list_sizes(train, model)) == 1,
        f"train.patch_sizes {', '.join(map(str, train.patch_sizes))} is the model's own patch and no other": patches
        == {model.side_unit},
    }


def ladder_conditions(settings: Settings, typed: Mapping[str, Any], *, multi_label: bool) -> dict[str, bool]:
    """Conditions for k-NN and the linear probe, which run before the training of pretrained weights."""
    train, weights = settings.train, settings.model.weights not in (None, SCRATCH)
    runs_baselines = weights and train.ladder
    return {
        "train.ladder needs model.weights": typed.get("train.ladder") is True and not weights,
        "train.ladder needs images of one class each": runs_baselines and multi_label,
        "train.probe_head needs model.weights and train.ladder": typed.get("train.probe_head") is True and not runs_baselines,
        "train.stop_early needs model.weights and train.ladder": train.stop_early and not runs_baselines,
        "train.stop_early needs images of one class each": train.stop_early and runs_baselines and multi_label,
    }


def loss_conditions(settings: Settings, typed: Mapping[str, Any], *, multi_label: bool) -> dict[str, bool]:
    """Conditions for the loss and its targets."""
    optim = settings.optim
    return {
        "optim.loss ce chooses one class an image, and bce is for any number of labels": multi_label
        and typed.get("optim.loss") == "ce",
        "optim.label_smoothing is for images of one class each, and these have any number of labels": multi_label
        and optim.label_smoothing > 0,
        "optim.label_smoothing is for optim.loss ce": optim.label_smoothing > 0 and optim.loss == "bce" and not multi_label,
    }


def distill_conditions(settings: Settings, model: Backbone) -> dict[str, bool]:
    """Conditions for distillation."""
    cfg, default, random = settings.distill, DistillConfig(), settings.model.weights in (None, SCRATCH)
    return {
        "distill's settings need distill.teacher": cfg.teacher is None and cfg != default,
        "distill.tau is for distill.kind soft": cfg.teacher is not None and cfg.kind == "hard" and cfg.tau != default.tau,
        "distill.teacher needs distill.alpha above 0": cfg.teacher is not None and cfg.alpha == 0,
        "model.dist_token learns from distill.teacher; without one it is a second class token": len(model.heads) > 1
        and cfg.teacher is None
        and random,
    }


def beit_conditions(cfg: BeitPretrainConfig) -> dict[str, bool]:
    """Conditions for the codebook of BEiT's pre-training."""
    return {
        f'beit.normalise is for beit.tokenizer "{PIXELS}"': cfg.tokenizer != PIXELS
        and cfg.normalise != BeitPretrainConfig().normalise
    }


def check_warmup(warmup: float, steps: int | None) -> str | None:
    """Return a note for a warm-up that is longer than the run, in steps; None for any other."""
    if steps is None or warmup < 1 or warmup < steps:
        return None
    return f"optim.warmup {warmup:g} steps is longer than the run of {steps:,}: the learning rate never reaches optim.lr"


def list_side_effects(settings: Settings, model: Backbone) -> list[str]:
    """Return one line for each unexpected effect of settings on each other."""
    train, optim, notes = settings.train, settings.optim, []
    if train.accumulate > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        notes.append(f"train.accumulate {train.accumulate}: the batch norms of {settings.model.name} see one part at a time")
    if optim.freeze and settings.model.weights in (None, SCRATCH):
        notes.append(
            f"optim.freeze {optim.freeze}: the frozen blocks keep their random weights; --weights W starts from others"
        )
    if train.precision == "fp8" and pick_device(train.device).type == "cpu":
        notes.append("train.precision fp8 is emulated on a CPU, where bf16 and fp32 are faster")
    return notes

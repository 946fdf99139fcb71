"""From what somebody said to every setting of a run: recipes, what the data say, what fits weights, and nothing left open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitrail.config import SCRATCH, DataConfig, Preprocessing, Settings, pair
from vitrail.data.dataset import Source
from vitrail.data.sources import NAMES, open_source
from vitrail.models import check_model, meta_model
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast_dtype, pick_device
from vitrail.settings import layers
from vitrail.settings.families import family_of, family_of_config, name_of, parse_name
from vitrail.tasks import TASKS, TaskSpec
from vitrail.train import advice
from vitrail.train.notes import unused
from vitrail.train.progress import Display
from vitrail.train.sizes import check_sizes
from vitrail.weights import load as load_weights

PHOTO_SIZE = 224
"""Side in pixels for photographs, where no setting says another."""


def settled(
    where: str,
    *,
    recipe: str | None,
    from_file: bool,
    written: Mapping[str, Any],
    said: Mapping[str, Any],
    display: Display,
) -> Settings:
    """Every setting of a run on the data at `where`: what was said, what is written, a recipe's, and what the data say."""
    asked = layers.merge(written, said)
    unchecked = layers.build([asked])
    named = {} if recipe is None else layers.read_recipe(recipe)
    task = TASKS[layers.merge(named, asked).get("train", {}).get("task", unchecked.train.task)]
    source = open_source(where, val_fraction=unchecked.data.val_fraction, classes=task.supervised)
    told = recipe is not None or from_file  # then it says what is to be done, and nothing is fitted
    nearby = not told and task.supervised
    start = asked.get("model", {}).get("weights") or (within_reach(source, asked, display) if nearby else None)
    below = recipe or task.recipe_for(source)
    if start in (None, SCRATCH):
        known = layers.read_recipe(below or layers.default_recipe(where)) if recipe or not from_file else {}
        settings, images = layers.build([facts(source, task), known, written, said]), None
    else:
        settings, images = fine_tuning(start, source, task=task, recipe=below, fitted=nearby, said=asked, display=display)
    if settings.data.val_fraction != unchecked.data.val_fraction:  # the recipe's, which a resumed run takes as well
        source = open_source(where, val_fraction=settings.data.val_fraction, classes=task.supervised)
    settings = resolved(with_values(settings, source, images, display), source, images)
    if settings.model.num_classes != len(task.classes(source)):
        has = f"{source.name}, which has {len(source.classes)} classes"
        what = has if task.supervised else f"train.task {settings.train.task}, which needs no head"
        raise ValueError(f"model.num_classes {settings.model.num_classes} does not fit {what}; leave the setting out")
    check_model(settings.model)  # what can't be built says so before the images are read
    model = meta_model(settings.model)
    task.check(settings, model)
    check_sizes(settings.train, model)
    for line in source.notes:
        display.say(f"note: {line}")
    for line in unused(settings, model, said=said, multi_label=source.multi_label):
        display.say(f"note: {line}")
    return settings


def within_reach(source: Source, asked: Mapping[str, Any], display: Display) -> str | None:
    """The weights to start from where somebody trains on photographs and names neither weights nor a model."""
    if source.img_size is not None or asked.get("model"):
        return None
    name = advice.PRETRAINED[pick_device(asked.get("train", {}).get("device", "auto")).type]
    try:
        load_weights(name)
    except ValueError as error:
        display.say(f"no pretrained weights are within reach ({name}: {str(error).partition(';')[0]}); training from scratch")
        return None
    return name


def fine_tuning(
    start: str,
    source: Source,
    *,
    task: TaskSpec,
    recipe: str | None,
    fitted: bool,
    said: Mapping[str, Any],
    display: Display,
) -> tuple[Settings, Preprocessing]:
    """The settings to fine-tune weights with: the recipe's, or those fitted to the facts, below what was said.

    The model's shape is the weights'; a task without classes leaves out the recipe's model and fits nothing. Also gives what
    the weights say of their images.
    """
    name = said.get("model", {}).get("name")
    named = parse_name(name) if name else {}  # what the name says of the shape is compared with the weights below
    fields = {key: value for key, value in layers.model_fields(said).items() if key != "weights" and named.get(key) != value}
    model = load_weights(start, **{"num_classes": len(task.classes(source)), "in_channels": source.channels, **fields})
    shape = {**dataclasses.asdict(model.config), "name": name_of(model.config)}
    if name and (family_of(name) is not family_of_config(model.config) or not named) and name != shape["name"]:
        raise ValueError(f'model.name "{name}" is not what the weights {start} are of, {shape["name"]}; leave --model out')
    for key, value in named.items():
        if not (key in fields or key == "img_size") and pair_or(shape[key]) != pair_or(value):
            raise ValueError(
                f'model.name "{name}" has {key} {value}, and the weights {start} have {shape[key]}; leave --model out'
            )
    below = layers.read_recipe(recipe or "finetune")
    if not task.supervised:
        below.pop("model", None)
    if "name" in below.get("model", {}):
        raise ValueError(
            f'recipe "{recipe}" has a model of its own, and the weights {start} have theirs; use --recipe finetune'
        )
    stack = [{"model": shape}, below]
    if not model.blocks_in_order():
        stack.append({} if recipe else {"optim": {"layer_decay": 1.0}})  # nobody asked for the recipe's
    elif fitted:
        stack.append(fit(model, source, nameless(said), display))
    if task.supervised and model.classes == source.classes:
        display.say(
            "the weights know these classes: their head is where training starts (train.probe_head true takes the probe)"
        )
        stack.append({"train": {"probe_head": False}})
    assert model.preprocessing is not None
    return layers.build([*stack, nameless(said)]), model.preprocessing


def fit(model: Backbone, source: Source, said: Mapping[str, Any], display: Display) -> dict[str, Any]:
    """The settings that follow from the facts, printed with their reasons and, beside what was said, as they are typed."""
    lengths, counts = said.get("train", {}), source.class_counts()
    device = pick_device(lengths.get("device", "auto"))
    given = advice.advise(
        advice.Facts(
            images=source.train_images(),
            class_counts=counts,
            side=None if source.img_size is None else min(source.img_size),
            device=device.type,
            memory_bytes=advice.memory_of(device),
            minutes=lengths.get("minutes"),
            model=model.config,
            side_unit=model.side_unit,
            multi_label=source.multi_label,
        )
    )
    display.say("fitted to the data, the device and the time:")
    for reason in given.said_of([f"{section}.{key}" for section, fields in said.items() for key in fields]):
        display.say(f"  {reason}")
    together = layers.merge(given.layer, {section: fields for section, fields in said.items() if section != "data"})
    display.say(f"the same as: vitrail train {source.name} {layers.command('finetune', together)}")
    return given.layer


def nameless(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without the model's name, which would start its shape afresh."""
    return {**layer, "model": {key: value for key, value in layer.get("model", {}).items() if key != "name"}}


def pair_or(value: Any) -> Any:
    """Sides as pairs, anything else as it is."""
    return tuple(value) if isinstance(value, list) else (value, value) if isinstance(value, int) else value


def with_values(settings: Settings, source: Source, given: Preprocessing | None, display: Display) -> Settings:
    """The settings with the values that become black and white, and the mean and deviation of bands that are no colours.

    For images with more than 8 bits `data.range` auto takes what the weights were trained with, else the values in use.
    """
    data, threads, used = settings.data, settings.data.workers, source.values_in_use(threads=settings.data.workers)
    weights = given.range if given is not None and data.range == "auto" else None
    if weights is not None:
        data = dataclasses.replace(data, range=weights)
    elif used is not None and data.range == "auto":
        data = dataclasses.replace(data, range=used.range or "full")
    if used is not None:
        chosen = range_of(data)
        ends = "the whole range of the type" if chosen is None else f"{chosen[0]:.6g} to {chosen[1]:.6g}"
        whose = ", as the weights were trained with," if weights is not None else ""
        display.say(f"note: {used}: {ends}{whose} becomes black to white (data.range)")
        if chosen is not None and used.beyond(chosen):
            display.say(f"note: most of the values are outside of {ends}, and become black or white; see data.range")
        elif few := used.few_levels(chosen):
            display.say(f"note: {few}")
    elif weights is not None:
        pass
    elif not isinstance(data.range, str):
        display.say("note: data.range is for images with more than 8 bits, and there are none; it has no effect here")
    if given is None and settings.model.in_channels == source.channels and not (data.mean and data.std):
        mean, std = source.band_statistics(value_range=range_of(data), threads=threads)
        data = dataclasses.replace(data, mean=data.mean or mean, std=data.std or std)
    return dataclasses.replace(settings, data=data)


def range_of(data: DataConfig) -> tuple[float, float] | None:
    """The values that become black and white; None is the whole range of their type."""
    return None if isinstance(data.range, str) else data.range


def resolved(settings: Settings, source: Source, given: Preprocessing | None) -> Settings:
    """The settings with nothing left to find out: a run goes on, and is scored, as it began, wherever it is."""
    dtype = autocast_dtype(settings.train.precision, pick_device(settings.train.device))
    path = settings.data.path if settings.data.path in NAMES else str(Path(settings.data.path).resolve())
    images = preprocessing_for(source, settings, given)
    data = {"path": path, **{name: getattr(images, name) for name in ("mean", "std", "crop_pct", "crop_mode", "interpolation")}}
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[dtype]
    teacher = settings.distill.teacher
    if teacher is not None and Path(teacher).exists():
        teacher = str(Path(teacher).resolve())
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, **data),
        distill=dataclasses.replace(settings.distill, teacher=teacher),
        train=dataclasses.replace(settings.train, precision=precision),  # type: ignore[arg-type]
    )


def facts(source: Source, task: TaskSpec) -> dict[str, Any]:
    """What the data says of the model, below everything that somebody says."""
    size = PHOTO_SIZE if source.img_size is None else source.img_size
    return {"model": {"img_size": size, "in_channels": source.channels, "num_classes": len(task.classes(source))}}


def preprocessing_for(source: Source, settings: Settings, given: Preprocessing | None = None) -> Preprocessing:
    """What happens to images before the model: as the settings say, else the weights (`given`), else the data set."""
    cfg, data = settings.model, settings.data
    own = 0.875 if source.img_size is None else 1.0  # small images are all subject, photographs have margins
    known = given or Preprocessing(
        img_size=pair(cfg.img_size), in_channels=source.channels, mean=source.mean, std=source.std, crop_pct=own
    )
    mean, std = (in_channels_of(values, cfg.in_channels) for values in (data.mean or known.mean, data.std or known.std))
    if not source.takes(cfg.in_channels):
        raise ValueError(f"model.in_channels {cfg.in_channels} {source.refusal}")
    for name, values in (("mean", data.mean), ("std", data.std)):
        if values and len(values) not in (1, 3, cfg.in_channels):
            raise ValueError(f"data.{name} has {len(values)} numbers, and model.in_channels is {cfg.in_channels}; give as many")
    return Preprocessing(
        img_size=pair(cfg.img_size),
        in_channels=cfg.in_channels,
        mean=mean,
        std=std,
        crop_pct=data.crop_pct or known.crop_pct,
        crop_mode=data.crop_mode or known.crop_mode,
        interpolation=data.interpolation or known.interpolation,
        range=range_of(data),
    )


def in_channels_of(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or deviations of RGB for grey images, of grey ones for RGB, and of these again for more bands."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[at % len(values)] for at in range(channels))

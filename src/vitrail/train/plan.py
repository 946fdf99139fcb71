"""Plan of a run: a request resolved into settings, data and weights, each opened or read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail.data.dataset import Source
from vitrail.data.sources import NAMES, open_source
from vitrail.models import check_model, meta_model
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast_dtype, pick_device
from vitrail.settings import SCRATCH, DataConfig, Preprocessing, Settings, layers, nearest, pair
from vitrail.settings.families import family_of, family_of_config, name_of, parse_name
from vitrail.tasks import TASKS, TaskSpec
from vitrail.train import advice
from vitrail.train.distributed import World
from vitrail.train.notes import unused
from vitrail.train.sizes import check_sizes
from vitrail.weights.load import OpenedWeights, open_weights

PHOTO_SIZE = 224
"""Side in pixels for photographs, where no setting says another."""
DEFAULT_DATA = "fashion-sample"
"""The data set where none is named: it comes with the package."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `train`, as layers of settings."""

    overrides: Mapping[str, Any]
    """Settings of the call or of the command line."""
    recipe: str | None = None
    file: Mapping[str, Any] | None = None
    """Settings of the file `--config`; None without one."""

    @property
    def layer(self) -> dict[str, Any]:
        """All settings that were given, the overrides on top."""
        return layers.merge(self.file or {}, self.overrides)

    @property
    def data(self) -> str:
        """Name or path of the data set."""
        return str(self.layer.get("data", {}).get("path", DEFAULT_DATA))

    @property
    def device(self) -> str:
        """Name of the device."""
        return str(self.layer.get("train", {}).get("device", "auto"))

    @property
    def prescribed(self) -> bool:
        """Whether a recipe or a file prescribes the run: then nothing is fitted to data, device and time."""
        return self.recipe is not None or self.file is not None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is known of a run before images are read."""

    settings: Settings
    """Every setting, with nothing left at "auto"."""
    source: Source
    weights: OpenedWeights | None
    """Weights to start from, read but not built; None: random ones."""
    notes: tuple[str, ...]
    """Lines to print: choices with their reasons, and settings without effect."""


def plan_run(request: Request) -> Plan:
    """Resolve a request. Raises ValueError for settings that make no run. In this order:

    1. the task, from the recipe or the request;
    2. the data set is opened, whose classes and sizes everything below depends on;
    3. the weights to start from are read: those named, or pretrained ones for photographs;
    4. the settings: facts of the data, recipe or fitted settings, file, overrides; later ones win;
    5. values that the images hold: range of deep images, mean and deviation of bands;
    6. what is left at "auto": preprocessing, precision, absolute paths;
    7. checks of model, task and image sizes, on the meta device; notes on settings without effect.
    """
    asked, notes = request.layer, list[str]()
    unchecked = layers.build([asked])
    named = {} if request.recipe is None else layers.read_recipe(request.recipe)
    task = task_row(layers.merge(named, asked).get("train", {}).get("task", unchecked.train.task))
    source = open_source(request.data, val_fraction=unchecked.data.val_fraction, classes=task.supervised)
    weights = start_weights(request, source, task, notes)
    if weights is None:
        settings, preprocessing = from_scratch(request, source, task), None
    else:
        settings, preprocessing = fine_tuning(weights, request, source, task, notes)
    if settings.data.val_fraction != unchecked.data.val_fraction:  # the recipe's, which a resumed run takes as well
        source = open_source(request.data, val_fraction=settings.data.val_fraction, classes=task.supervised)
    settings = resolve_values(settings, source, preprocessing, notes)
    settings = resolve_auto(settings, source, preprocessing)
    model = check(settings, source, task)
    notes += [f"note: {line}" for line in source.notes]
    notes += [f"note: {line}" for line in unused(settings, model, said=request.overrides, multi_label=source.multi_label)]
    return Plan(settings, source, weights, tuple(notes))


def plan_together(request: Request, processes: World) -> Plan:
    """The plan in every process: the first one resolves the request, the others open the same data and weights."""
    resolved: list[Plan] = []

    def resolve() -> tuple[Settings, tuple[str, ...]]:
        resolved.append(plan_run(request))
        return resolved[0].settings, resolved[0].notes

    settings, notes = processes.on_first(resolve)
    if resolved:
        return resolved[0]
    name = settings.model.weights
    weights = None if name in (None, SCRATCH) else open_weights(str(name))
    return dataclasses.replace(plan_of(settings), weights=weights, notes=notes)


def plan_of(settings: Settings) -> Plan:
    """The plan of a run folder's settings, whose weights are in its checkpoints."""
    task = task_row(settings.train.task)
    source = open_source(settings.data.path, val_fraction=settings.data.val_fraction, classes=task.supervised)
    return Plan(settings, source, None, ())


def task_row(name: str) -> TaskSpec:
    """The row of `TASKS`. Raises ValueError for a name that has none."""
    if name not in TASKS:
        raise ValueError(f'train.task "{name}" is none of {", ".join(TASKS)}{nearest(name, list(TASKS))}')
    return TASKS[name]


def start_weights(request: Request, source: Source, task: TaskSpec, notes: list[str]) -> OpenedWeights | None:
    """The weights that the request names, or pretrained ones for photographs where it names nothing; None: random ones."""
    name = request.layer.get("model", {}).get("weights")
    if name is not None:
        return None if name == SCRATCH else open_weights(name)
    if request.prescribed or not task.supervised or source.img_size is not None or request.layer.get("model"):
        return None
    name = advice.PRETRAINED[pick_device(request.device).type]
    try:
        return open_weights(name)
    except ValueError as error:
        notes.append(f"no pretrained weights are within reach ({name}: {str(error).partition(';')[0]}); training from scratch")
        return None


def from_scratch(request: Request, source: Source, task: TaskSpec) -> Settings:
    """The settings of a run from random weights: facts of the data, recipe, file, overrides."""
    recipe = request.recipe or task.recipe_for(source)
    known: Mapping[str, Any] = {}
    if request.recipe is not None or request.file is None:
        known = layers.read_recipe(recipe or layers.default_recipe(request.data))
    return layers.build([facts(source, task), known, request.file or {}, request.overrides])


def fine_tuning(
    weights: OpenedWeights, request: Request, source: Source, task: TaskSpec, notes: list[str]
) -> tuple[Settings, Preprocessing]:
    """The settings to fine-tune weights with, and the preprocessing that comes with them.

    The model's shape is the weights'. Below the request lies its recipe, or "finetune" with the settings that `advice` fits;
    a task without classes leaves out the recipe's model and fits nothing.
    """
    asked, start = request.layer, weights.source
    name = asked.get("model", {}).get("name")
    named = parse_name(name) if name else {}  # what the name says of the shape is compared with the weights below
    fields = {key: value for key, value in layers.model_fields(asked).items() if key != "weights" and named.get(key) != value}
    model = weights.build({"num_classes": len(task.classes(source)), "in_channels": source.channels, **fields})
    shape = {**dataclasses.asdict(model.config), "name": name_of(model.config), "weights": str(start)}
    if name:
        require_same_model(name, model, str(start), free=fields)
    recipe = request.recipe or task.recipe_for(source)
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
    elif not request.prescribed and task.supervised:
        stack.append(fit(model, source, nameless(asked), notes))
    if task.supervised and model.classes == source.classes:
        notes.append(
            "the weights know these classes: their head is where training starts (train.probe_head true takes the probe)"
        )
        stack.append({"train": {"probe_head": False}})
    assert model.preprocessing is not None
    return layers.build([*stack, nameless(asked)]), model.preprocessing


def require_same_model(name: str, model: Backbone, start: str, *, free: Mapping[str, Any]) -> None:
    """Raise ValueError where weights are not of the model of that name; fields in `free`, and the image size, may differ."""
    named, config = parse_name(name), model.config
    if (family_of(name) is not family_of_config(config) or not named) and name != name_of(config):
        raise ValueError(f'model.name "{name}" is not what the weights {start} are of, {name_of(config)}; leave --model out')
    for key, value in named.items():
        theirs = getattr(config, key)
        if not (key in free or key == "img_size") and pair_or(theirs) != pair_or(value):
            raise ValueError(f'model.name "{name}" has {key} {value}, and the weights {start} have {theirs}; leave --model out')


def fit(model: Backbone, source: Source, asked: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The settings that follow from data, device and time; the notes have their reasons, and the command that sets them."""
    lengths, counts = asked.get("train", {}), source.class_counts()
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
    notes.append("fitted to the data, the device and the time:")
    typed = [f"{section}.{key}" for section, fields in asked.items() for key in fields]
    notes += [f"  {reason}" for reason in given.said_of(typed)]
    together = layers.merge(given.layer, {section: fields for section, fields in asked.items() if section != "data"})
    notes.append(f"the same as: vitrail train {source.name} {layers.command('finetune', together)}")
    return given.layer


def check(settings: Settings, source: Source, task: TaskSpec) -> Backbone:
    """Raise ValueError for settings that make no model or do not fit task and data. Return the model on the meta device."""
    if settings.model.num_classes != len(task.classes(source)):
        has = f"{source.name}, which has {len(source.classes)} classes"
        what = has if task.supervised else f"train.task {settings.train.task}, which needs no head"
        raise ValueError(f"model.num_classes {settings.model.num_classes} does not fit {what}; leave the setting out")
    check_model(settings.model)
    model = meta_model(settings.model)
    task.check(settings, model)
    check_sizes(settings.train, model)
    return model


def nameless(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer without the model's name, which would start its shape afresh."""
    return {**layer, "model": {key: value for key, value in layer.get("model", {}).items() if key != "name"}}


def pair_or(value: Any) -> Any:
    """Sides as pairs, anything else as it is."""
    return tuple(value) if isinstance(value, list) else (value, value) if isinstance(value, int) else value


def resolve_values(settings: Settings, source: Source, given: Preprocessing | None, notes: list[str]) -> Settings:
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
        notes.append(f"note: {used}: {ends}{whose} becomes black to white (data.range)")
        if chosen is not None and used.beyond(chosen):
            notes.append(f"note: most of the values are outside of {ends}, and become black or white; see data.range")
        elif few := used.few_levels(chosen):
            notes.append(f"note: {few}")
    elif weights is not None:
        pass
    elif not isinstance(data.range, str):
        notes.append("note: data.range is for images with more than 8 bits, and there are none; it has no effect here")
    if given is None and settings.model.in_channels == source.channels and not (data.mean and data.std):
        mean, std = source.band_statistics(value_range=range_of(data), threads=threads)
        data = dataclasses.replace(data, mean=data.mean or mean, std=data.std or std)
    return dataclasses.replace(settings, data=data)


def range_of(data: DataConfig) -> tuple[float, float] | None:
    """The values that become black and white; None is the whole range of their type."""
    return None if isinstance(data.range, str) else data.range


def resolve_auto(settings: Settings, source: Source, given: Preprocessing | None) -> Settings:
    """The settings with nothing left at "auto": a run resumes and is scored as it began, wherever its folder is."""
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
    """Fields of the model that follow from the data, the lowest layer of the settings."""
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

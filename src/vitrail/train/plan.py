"""Plan of a run: a request resolved into settings, data and weights, each opened or read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.check.before_training import check_before_training
from vitrail.data.dataset import Source
from vitrail.data.sources import NAMES, open_source
from vitrail.models import check_model, meta_model
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast_dtype, bf16_is_faster, pick_device
from vitrail.settings import SCRATCH, DataConfig, ModelSection, Preprocessing, Settings, layers, nearest, pair
from vitrail.settings.families import family_of, family_of_config, name_of, parse_name
from vitrail.settings.masked import PIXELS
from vitrail.settings.smaller import apply_smaller, read_smaller
from vitrail.tasks import TASKS, TaskSpec
from vitrail.train import advice
from vitrail.train.distributed import World
from vitrail.train.notes import find_unused
from vitrail.train.sizes import check_sizes
from vitrail.weights.load import OpenedWeights, open_weights

PHOTO_SIZE = 224
"""Default image side in pixels for photographs."""
WARM_HEADS = 0.1
"""Share of a pre-training from weights in which only the heads learn."""
WARM_LR = 0.1
"""Factor on the recipe's learning rate in a pre-training from weights: recipes are for random ones (dev/LOG.md)."""
WARM_GUARD = {"every": 0.1, "images": 2048, "knn_drop": 0.02, "knn_patience": 1}
"""Guard of a pre-training from weights: a loss of 2 points ends it, on images enough to show one (dev/LOG.md)."""
DEFAULT_DATA = "fashion-sample"
"""Default data set: it comes with the package."""


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
        """Settings of file and overrides; the overrides win."""
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
        """True where a recipe or a file sets the run: then nothing is fitted to data, device and time."""
        return self.recipe is not None or self.file is not None


@dataclass(frozen=True, eq=False)
class Plan:
    """Resolved settings, data and weights of a run, before images are read."""

    settings: Settings
    """All settings, with "auto" resolved."""
    source: Source
    weights: OpenedWeights | None
    """Weights to start from, read but not built; None: random ones."""
    notes: tuple[str, ...]
    """Lines to print: choices with their reasons, and settings without effect."""
    smaller: tuple[Settings, ...] = ()
    """Settings with each of the recipe's smaller models, from larger to smaller; none where the request names the model."""


def plan_run(request: Request) -> Plan:
    """Resolve a request. Raises ValueError for invalid settings. In this order:

    1. the task, from the recipe or the request;
    2. the data set is opened, whose classes and sizes everything below depends on;
    3. the weights to start from are read: those named, or pretrained ones for photographs;
    4. the settings: facts of the data, recipe or fitted settings, file, overrides; later ones win;
    5. values that the images hold: range of deep images, mean and deviation of bands;
    6. what is left at "auto": preprocessing, precision, absolute paths;
    7. checks of model, task and image sizes, on the meta device; notes on settings without effect;
    8. smaller models of the recipe, for a machine that is too slow for its own.
    """
    requested, notes = request.layer, list[str]()
    unchecked = layers.build([requested])
    recipe = {} if request.recipe is None else layers.read_recipe(request.recipe)
    task = find_task(layers.merge(recipe, requested).get("train", {}).get("task", unchecked.train.task))
    source = open_data_of(unchecked.data, request.data, task)
    weights = open_start_weights(request, source, task, notes)
    if weights is None:
        settings, preprocessing = resolve_from_scratch(request, source, task, notes), None
    else:
        settings, preprocessing = resolve_fine_tuning(weights, request, source, task, notes)
    parts = [(each.data.val_fraction, each.data.fraction) for each in (settings, unchecked)]
    if parts[0] != parts[1]:  # the recipe's, which resuming reads from the settings
        source = open_data_of(settings.data, request.data, task)
    settings = resolve_values(settings, source, preprocessing, notes)
    settings = resolve_auto(settings, source, preprocessing)
    model = check_plan(settings, source, task)
    notes += [f"note: {line}" for line in source.notes]
    notes += [
        f"note: {line}" for line in find_unused(settings, model, overrides=request.overrides, multi_label=source.multi_label)
    ]
    smaller = resolve_smaller(settings, request, source, task) if weights is None else ()
    return Plan(settings, source, weights, tuple(notes), smaller)


def plan_on_all(request: Request, processes: World) -> Plan:
    """Return the plan in every process: the first one resolves the request, the others open the same data and weights.

    The first one also looks through the data, whose findings are among the notes.
    """
    plans: list[Plan] = []

    def resolve() -> tuple[Settings, tuple[str, ...], tuple[Settings, ...]]:
        plan = plan_run(request)
        plans.append(dataclasses.replace(plan, notes=(*plan.notes, *check_before_training(plan.source))))
        return plans[0].settings, plans[0].notes, plans[0].smaller

    settings, notes, smaller = processes.run_on_first(resolve)
    if plans:
        return plans[0]
    name = settings.model.weights
    weights = None if name in (None, SCRATCH) else open_weights(str(name))
    return dataclasses.replace(plan_from_settings(settings), weights=weights, notes=notes, smaller=smaller)


def plan_from_settings(settings: Settings) -> Plan:
    """Return the plan of a resumed run, whose weights are in its checkpoints, from its settings."""
    task = find_task(settings.train.task)
    return Plan(settings, open_data_of(settings.data, settings.data.path, task), None, ())


def open_data_of(data: DataConfig, path: str, task: TaskSpec) -> Source:
    """Open a data set with the parts that the settings say."""
    return open_source(path, val_fraction=data.val_fraction, fraction=data.fraction, classes=task.supervised)


def find_task(name: str) -> TaskSpec:
    """Return the row of `TASKS` for a name. Raises ValueError for an unknown name."""
    if name not in TASKS:
        raise ValueError(f'train.task "{name}" is none of {", ".join(TASKS)}{nearest(name, list(TASKS))}')
    return TASKS[name]


def open_start_weights(request: Request, source: Source, task: TaskSpec, notes: list[str]) -> OpenedWeights | None:
    """Open the weights of the request, by default pretrained ones for photographs. Return None for random weights.

    A name of `advice.STARTS`, such as "dinov3", is the size of these weights for the device, unless a file or folder has it.
    """
    name, device = request.layer.get("model", {}).get("weights"), pick_device(request.device).type
    if name in advice.STARTS and not Path(name).exists():
        return open_weights(advice.STARTS[name][device])
    if name is not None:
        return None if name == SCRATCH else open_weights(name)
    if request.prescribed or not task.supervised or source.img_size is not None or request.layer.get("model"):
        return None
    name = advice.STARTS[advice.DEFAULT_START][device]
    try:
        opened = open_weights(name)
    except ValueError as error:
        reason = str(error).partition(";")[0]
        notes.append(f"pretrained weights are not available ({name}: {reason}); training from scratch")
        return None
    notes.append(f"starting from {name}; --weights {' or '.join(advice.OTHER_STARTS)} starts from larger, slower ones")
    return opened


def resolve_from_scratch(request: Request, source: Source, task: TaskSpec, notes: list[str]) -> Settings:
    """Resolve the settings of a run from random weights: fields from the data, recipe, file, overrides; later ones win."""
    recipe = scratch_recipe(request, source, task)
    recipe_layer = {} if recipe is None else layers.read_recipe(recipe)
    settings = layers.build([data_fields(source, task), recipe_layer, request.file or {}, request.overrides])
    if request.layer.get("model", {}).get("name"):
        notes += [f"note: {line}" for line in dropped_with_the_name(settings.model, recipe_layer, request.layer)]
    return settings


def dropped_with_the_name(model: ModelSection, recipe: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return a line where a requested model name drops fields of the recipe's model that no name decides."""
    dropped = {
        f"model.{key}": value
        for key, value in recipe.get("model", {}).items()
        if key not in requested["model"] and as_pair(getattr(model, key, value)) != as_pair(value)
    }
    if not dropped:
        return []
    given = " ".join(f"--{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in dropped.items())
    return [f"model {model.name} has the defaults of its name, and not what the recipe sets for its own: {given}"]


def scratch_recipe(request: Request, source: Source, task: TaskSpec) -> str | None:
    """Return the recipe of a run from random weights; None where a file takes its place."""
    if request.recipe is None and request.file is not None:
        return None
    return request.recipe or task.recipe_for(source) or layers.default_recipe(request.data)


def resolve_smaller(settings: Settings, request: Request, source: Source, task: TaskSpec) -> tuple[Settings, ...]:
    """Return the settings with each smaller model of the recipe that goes with the requested settings.

    None for a run of a fixed length, with `train.smaller` false, and where the request has a field of the model.
    """
    recipe, requested = scratch_recipe(request, source, task), request.layer
    chosen = set(requested.get("model", {})) - {"weights"}
    if recipe is None or chosen or settings.train.minutes is None or not settings.train.smaller:
        return ()
    fitting = []
    for layer in read_smaller(recipe):
        try:
            smaller = apply_smaller(settings, layer, requested)
            check_plan(smaller, source, task)
        except ValueError:  # of a requested setting, such as a start_size that is larger than this model's images
            continue
        fitting.append(smaller)
    return tuple(fitting)


def resolve_fine_tuning(
    weights: OpenedWeights, request: Request, source: Source, task: TaskSpec, notes: list[str]
) -> tuple[Settings, Preprocessing]:
    """Resolve the settings of a run from given weights. Return them and the preprocessing of the weights.

    The model's shape is the weights'. The request overrides its recipe, by default "finetune" with the settings fitted by
    `advice`; a task without classes drops the recipe's model and fits nothing.
    """
    requested, start = request.layer, weights.source
    name = requested.get("model", {}).get("name")
    named = parse_name(name) if name else {}  # require_same_model compares it with the weights
    fields = {
        key: value for key, value in layers.model_fields(requested).items() if key != "weights" and named.get(key) != value
    }
    model = weights.build({"num_classes": len(task.classes(source)), "in_channels": source.channels, **fields})
    shape = {**dataclasses.asdict(model.config), "name": name_of(model.config), "weights": str(start)}
    if name:
        require_same_model(name, model, str(start), free=fields)
    recipe = request.recipe or task.recipe_for(source)
    recipe_layer = layers.read_recipe(recipe or "finetune")
    if not task.supervised:
        recipe_layer.pop("model", None)
    if "name" in recipe_layer.get("model", {}):
        raise ValueError(f'recipe "{recipe}" sets another model than that of the weights {start}; use --recipe finetune')
    stack = [{"model": shape}, recipe_layer]
    if not task.supervised:
        has_classes = len(source.classes) > 1 and not source.multi_label
        stack.append(go_on_gently(layers.build(stack).optim.lr, requested, notes, has_classes=has_classes))
    if not model.blocks_in_order():
        stack.append({} if recipe else {"optim": {"layer_decay": 1.0}})  # the default recipe's is not requested
    elif not request.prescribed and task.supervised:
        stack.append(fit_settings(model, source, request.data, drop_model_name(requested), notes))
    if task.supervised and model.classes == source.classes:
        notes.append(
            "the weights have a head for these classes: training starts from it (train.probe_head true starts from the probe)"
        )
        stack.append({"train": {"probe_head": False}})
    assert model.preprocessing is not None
    named_start = {"model": {"weights": str(start)}}  # a name of `advice.STARTS` is one on this device
    return layers.build([*stack, drop_model_name(requested), named_start]), model.preprocessing


def go_on_gently(lr: float, requested: Mapping[str, Any], notes: list[str], *, has_classes: bool) -> dict[str, Any]:
    """Return the settings that keep what weights have learned as a pre-training goes on from them, and note their reasons.

    Images with classes tell by their k-NN accuracy what is lost.
    """
    optim = requested.get("optim", {})
    if "warm_heads" not in optim:
        notes.append(
            f"only the heads learn in the first {WARM_HEADS:.0%} of the run, as the weights are trained (optim.warm_heads)"
        )
    if "lr" not in optim:
        notes.append(f"learning rate {WARM_LR * lr:g}, {WARM_LR:g} of that for random weights, for the same reason (optim.lr)")
    guard = WARM_GUARD if has_classes else {}
    resolved = layers.build([{"guard": guard}, {"guard": requested.get("guard", {})}]).guard
    if has_classes and resolved.stop and resolved.knn_drop:
        points = f"{100 * resolved.knn_drop:g} points"
        notes.append(f"a k-NN accuracy more than {points} below that of the weights ends the run (guard.knn_drop)")
    return {"optim": {"warm_heads": WARM_HEADS, "lr": WARM_LR * lr}, "guard": guard}


def require_same_model(name: str, model: Backbone, start: str, *, free: Mapping[str, Any]) -> None:
    """Raise ValueError for weights of another model than `name`; fields in `free`, and the image size, may differ."""
    named, config = parse_name(name), model.config
    if (family_of(name) is not family_of_config(config) or not named) and name != name_of(config):
        raise ValueError(f'model.name "{name}" is not the model of the weights {start}, {name_of(config)}; leave --model out')
    for key, value in named.items():
        actual = getattr(config, key)
        if not (key in free or key == "img_size") and as_pair(actual) != as_pair(value):
            raise ValueError(f'model.name "{name}" has {key} {value}, and the weights {start} have {actual}; leave --model out')


def fit_settings(model: Backbone, source: Source, data: str, requested: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Fit settings to data, device and time; append their reasons to the notes, and the equivalent command."""
    train, counts = requested.get("train", {}), source.class_counts()
    device = pick_device(train.get("device", "auto"))
    fitted = advice.advise(
        advice.Facts(
            images=source.train_images(),
            class_counts=counts,
            side=None if source.img_size is None else min(source.img_size),
            device=device.type,
            memory_bytes=advice.device_memory(device),
            minutes=train.get("minutes"),
            model=model.config,
            side_unit=model.side_unit,
            multi_label=source.multi_label,
            images_seen=None if model.classes == source.classes else model.card.images_seen,  # what knows them is to be kept
            recipe=layers.default_recipe(data),
        )
    )
    notes.append("fitted to the data, the device and the time:")
    overridden = [f"{section}.{key}" for section, fields in requested.items() for key in fields]
    notes += [f"  {reason}" for reason in fitted.reasons_without(overridden)]
    merged = layers.merge(fitted.layer, {section: fields for section, fields in requested.items() if section != "data"})
    notes.append(f"the same as: vitrail train {source.name} {layers.command('finetune', merged)}")
    return fitted.layer


def check_plan(settings: Settings, source: Source, task: TaskSpec) -> Backbone:
    """Raise ValueError for settings that are invalid for model, task or data. Return the model on the meta device."""
    if settings.model.num_classes != len(task.classes(source)):
        reason = f"{source.name}, which has {len(source.classes)} classes"
        if not task.supervised:
            reason = f"train.task {settings.train.task}, which needs no head"
        raise ValueError(f"model.num_classes {settings.model.num_classes} does not fit {reason}; leave the setting out")
    check_model(settings.model)
    model = meta_model(settings.model)
    task.check(settings, model)
    check_sizes(settings.train, model)
    return model


def drop_model_name(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer without the model's name, which would reset its shape."""
    return {**layer, "model": {key: value for key, value in layer.get("model", {}).items() if key != "name"}}


def as_pair(value: Any) -> Any:
    """Return an int or a list as a tuple (height, width), any other value unchanged."""
    return tuple(value) if isinstance(value, list) else (value, value) if isinstance(value, int) else value


def resolve_values(settings: Settings, source: Source, pretrained: Preprocessing | None, notes: list[str]) -> Settings:
    """Resolve the value range of deep images, and mean and standard deviation of bands that are no colours.

    For images with more than 8 bits, `data.range` "auto" is the range of the pretrained weights, else the values in use.
    """
    data, threads, used = settings.data, settings.data.workers, source.values_in_use(threads=settings.data.workers)
    weights_range = pretrained.range if pretrained is not None and data.range == "auto" else None
    if weights_range is not None:
        data = dataclasses.replace(data, range=weights_range)
    elif used is not None and data.range == "auto":
        data = dataclasses.replace(data, range=used.range or "full")
    if used is not None:
        chosen = value_range(data)
        ends = "the whole range of the type" if chosen is None else f"{chosen[0]:.6g} to {chosen[1]:.6g}"
        whose = ", as the weights were trained with," if weights_range is not None else ""
        notes.append(f"note: {used}: {ends}{whose} becomes black to white (data.range)")
        if chosen is not None and used.beyond(chosen):
            notes.append(f"note: most of the values are outside of {ends}, and become black or white; see data.range")
        elif few := used.few_levels(chosen):
            notes.append(f"note: {few}")
    elif weights_range is not None:
        pass
    elif not isinstance(data.range, str):
        notes.append("note: data.range is for images with more than 8 bits, and there are none; it has no effect here")
    if pretrained is None and settings.model.in_channels == source.channels and not (data.mean and data.std):
        mean, std = source.band_statistics(value_range=value_range(data), threads=threads)
        data = dataclasses.replace(data, mean=data.mean or mean, std=data.std or std)
    return dataclasses.replace(settings, data=data)


def value_range(data: DataConfig) -> tuple[float, float] | None:
    """Return the values that become black and white; None for the full range of the dtype."""
    return None if isinstance(data.range, str) else data.range


def resolve_auto(settings: Settings, source: Source, pretrained: Preprocessing | None) -> Settings:
    """Resolve all settings at "auto" and relative paths, so that resuming and scoring do not depend on the machine."""
    dtype = autocast_dtype(settings.train.precision, pick_device(settings.train.device))
    path = settings.data.path if settings.data.path in NAMES else str(Path(settings.data.path).resolve())
    images = resolve_preprocessing(source, settings, pretrained)
    data = {"path": path, **{name: getattr(images, name) for name in ("mean", "std", "crop_pct", "crop_mode", "interpolation")}}
    precision = settings.train.precision
    if precision == "auto":
        precision = "fp32" if dtype is None else "bf16"
    optim = settings.optim
    if optim.name == "muon" and optim.muon_precision == "auto":
        fast = bf16_is_faster(pick_device(settings.train.device))
        optim = dataclasses.replace(optim, muon_precision="bf16" if fast else "fp32")
    teacher = settings.distill.teacher
    if teacher is not None and Path(teacher).exists():
        teacher = str(Path(teacher).resolve())
    tokenizer = settings.beit.tokenizer
    if tokenizer != PIXELS and Path(tokenizer).exists():
        tokenizer = str(Path(tokenizer).resolve())
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, **data),
        optim=optim,
        beit=dataclasses.replace(settings.beit, tokenizer=tokenizer),
        distill=dataclasses.replace(settings.distill, teacher=teacher),
        train=dataclasses.replace(settings.train, precision=precision),
    )


def data_fields(source: Source, task: TaskSpec) -> dict[str, Any]:
    """Return the model's fields that follow from the data, the lowest layer of the settings."""
    size = PHOTO_SIZE if source.img_size is None else source.img_size
    return {"model": {"img_size": size, "in_channels": source.channels, "num_classes": len(task.classes(source))}}


def resolve_preprocessing(source: Source, settings: Settings, pretrained: Preprocessing | None = None) -> Preprocessing:
    """Resolve the preprocessing from the settings, else the pretrained weights, else the data set."""
    cfg, data = settings.model, settings.data
    crop_pct = 0.875 if source.img_size is None else 1.0  # small images are all subject, photographs have margins
    default = pretrained or Preprocessing(
        img_size=pair(cfg.img_size), in_channels=source.channels, mean=source.mean, std=source.std, crop_pct=crop_pct
    )
    mean, std = (match_channels(values, cfg.in_channels) for values in (data.mean or default.mean, data.std or default.std))
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
        crop_pct=data.crop_pct or default.crop_pct,
        crop_mode=data.crop_mode or default.crop_mode,
        interpolation=data.interpolation or default.interpolation,
        range=value_range(data),
    )


def match_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return channel means or standard deviations for another number of channels: averaged for one, else repeated."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[at % len(values)] for at in range(channels))

"""Assembly of a training from its plan: images, model, task, optimizers, and the loop that they go into."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

import torch

from vitrail.data.batches import Part, steps_per_epoch
from vitrail.data.dataset import Source, Split, SplitName
from vitrail.evaluate import Scores
from vitrail.evaluate.evaluate import Among
from vitrail.models import build_model
from vitrail.models.backbone import Backbone
from vitrail.models.card import Kind
from vitrail.models.device import autocast_dtype, keep_freed_memory, pick_device
from vitrail.settings import SCRATCH, DataConfig, ModelSection, Preprocessing, Settings
from vitrail.tasks import TASKS, Task, TaskSpec
from vitrail.train.distributed import ALONE, World, own_device, require_shardable, shard
from vitrail.train.folder import write_skipped, write_whole
from vitrail.train.ladder import apply_probe, climb, has_linear_head
from vitrail.train.loop import Loop
from vitrail.train.notes import long_warmup
from vitrail.train.optim import build_optimizers, group_table
from vitrail.train.pace import Pace
from vitrail.train.plan import Plan, preprocessing_for
from vitrail.train.progress import Display, Metrics
from vitrail.train.step import Ema, Step, loss_scaler

DEFAULT_EPOCHS = 100.0


@dataclass(frozen=True, eq=False)
class Context:
    """A plan on one of the processes that carry it out."""

    plan: Plan
    folder: Path
    display: Display
    processes: World = ALONE
    resumed: bool = False
    """Whether the weights come from a checkpoint of the run: then none are loaded, and nothing is probed."""

    @property
    def settings(self) -> Settings:
        """Every setting of the run."""
        return self.plan.settings

    @property
    def source(self) -> Source:
        """The data set."""
        return self.plan.source

    @property
    def task(self) -> TaskSpec:
        """The row of `TASKS`."""
        return TASKS[self.settings.train.task]

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return own_device(pick_device(self.settings.train.device))

    @property
    def dtype(self) -> torch.dtype | None:
        """The number type under autocast; None is fp32."""
        return autocast_dtype(self.settings.train.precision, self.device)

    @property
    def data(self) -> DataConfig:
        """The `data` section, with this process's part of the machine's memory and cores."""
        return shared_by(self.settings.data, self.processes.neighbours)

    @property
    def sharded(self) -> bool:
        """Whether every process is to keep a part of the weights only."""
        return self.settings.train.shard and (not self.resumed or self.processes.size > 1)


@dataclass(frozen=True, eq=False)
class Images:
    """The splits of a run."""

    train: Split
    views: Mapping[str, Split]
    """Validation and test images, in evaluation view."""
    preprocessing: Preprocessing
    fingerprint: str
    """Hash of the names of all images in their order."""


def assemble(context: Context) -> Loop:
    """The loop of a run at step 0, whose order of steps is the order of the code.

    1. images of all splits, the same in every process;
    2. the model, from random weights or from those of the plan, and its card;
    3. the task around it, and what it computes once, before the first step;
    4. k-NN and a linear probe, where the weights are pretrained;
    5. running mean, compiled blocks, sharded weights;
    6. optimizers, and the length of the run.
    """
    cfg, display, processes, device = context.settings.train, context.display, context.processes, context.device
    keep_freed_memory(not (cfg.checkpointing or cfg.shard))  # these are there to save memory
    images = open_images(context)
    skipped = write_skipped(context.folder, images.train, *images.views.values()) if processes.first else 0
    model = start_model(context, images.preprocessing)
    announce(context, images, model, skipped=skipped)
    task = build_task(context, model, images)
    prepared_s = prepare_task(context, task, images)
    stopped = probe_first(context, model, images)
    mean = copy.deepcopy(model) if cfg.ema_decay else None
    place_weights(context, model, mean)
    optimizers = build_optimizers(model, context.settings.optim, batch_size=cfg.batch_size, companions=task.companions())
    pace = pace_for(context.settings, images.train, prepared_s=prepared_s)
    if line := long_warmup(context.settings.optim.warmup, pace.total):
        display.say(f"note: {line}")
    evaluate: Callable[[Backbone, Callable[[], None]], Scores | None] | None = None
    if len(images.views.get("val", ())):
        evaluate = functools.partial(
            score_model, task, split=images.views["val"], device=device, dtype=context.dtype, processes=processes
        )
    return Loop(
        settings=context.settings,
        folder=context.folder,
        split=images.train,
        views=images.views,
        preprocessing=images.preprocessing,
        device=device,
        move=Step(
            task,
            optimizers,
            autocast_dtype=context.dtype,
            clip_norm=context.settings.optim.clip_norm,
            accumulate=cfg.accumulate,
            scaler=loss_scaler(device, context.dtype),
            world=processes,
        ),
        ema=None if mean is None else Ema(model, mean, cfg.ema_decay),
        pace=pace,
        evaluate=evaluate,
        metrics=Metrics(context.folder) if processes.first else None,
        display=display,
        world=processes,
        stopped_at_probe=stopped,
        images_are=images.fingerprint,
        pictures=context.task.pictures,
    )


# --------------------------------------------------------------------------------------------------------------------
# Images


def open_images(context: Context) -> Images:
    """The splits of the data. Raises ValueError where processes see different images."""
    processes, preprocessing = context.processes, preprocessing_for(context.source, context.settings)
    images = processes.told_once(lambda: load_images(context, preprocessing))
    if len(set(processes.gather(images.fingerprint))) > 1:
        processes.told_once(lambda: refuse_other_images(context.source))
    return images


def load_images(context: Context, preprocessing: Preprocessing) -> Images:
    """Training images with augmentation, the others in evaluation view. Raises ValueError without training images."""
    source, settings = context.source, context.settings
    split = source.load("train", preprocessing=preprocessing, cfg=context.data, augment=settings.augment)
    if not len(split):
        raise ValueError(f"{source.name} has no training images; lower data.val_fraction {settings.data.val_fraction}")
    others: list[SplitName] = [name for name in source.splits if name != "train"]
    views: dict[str, Split] = {name: source.load(name, preprocessing=preprocessing, cfg=context.data) for name in others}
    names = "\0".join(chain(split.names, *(view.names for view in views.values())))
    fingerprint = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    return Images(split, views, preprocessing, fingerprint)


def training_view(context: Context, preprocessing: Preprocessing) -> Split:
    """The training images in evaluation view."""
    return context.source.load("train", preprocessing=preprocessing, cfg=context.data)


def refuse_other_images(source: Source) -> NoReturn:
    """Raises ValueError for processes that do not see the same images."""
    raise ValueError(f"the processes do not read the same images of {source.name}; let all machines see the same files")


def shared_by(data: DataConfig, processes: int) -> DataConfig:
    """The data's settings of one of several processes on a machine: its part of the memory and of the cores."""
    if processes == 1:
        return data
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, cores // processes) if data.workers < 0 else data.workers
    return dataclasses.replace(data, memory_gb=data.memory_gb / processes, workers=workers)


# --------------------------------------------------------------------------------------------------------------------
# Model and task


def start_model(context: Context, preprocessing: Preprocessing) -> Backbone:
    """The model that training starts from, on its device, with its card."""
    settings, source = context.settings, context.source
    torch.manual_seed(settings.train.seed)
    weights = None if context.resumed else context.plan.weights
    model = build_model(settings.model) if weights is None else weights.build(fields_of(settings.model))
    model = model.to(context.device)
    kind: Kind = "multi-label" if source.multi_label and context.task.supervised else "classify"
    model.card = dataclasses.replace(model.card, preprocessing=preprocessing, classes=context.task.classes(source), task=kind)
    model.checkpointing = settings.train.checkpointing
    return model


def fields_of(section: ModelSection) -> dict[str, object]:
    """The fields of a model's config, which a checkpoint is adapted to."""
    shape = section.shape()
    return {field.name: getattr(shape, field.name) for field in dataclasses.fields(shape) if field.name != "name"}


def announce(context: Context, images: Images, model: Backbone, *, skipped: int) -> None:
    """Print receipt, data, model and device, and how many files are left out."""
    settings, source, display = context.settings, context.source, context.display
    if model.receipt is not None:
        for line in str(model.receipt).split("\n"):
            display.say(line)
    labels = "labels for the scores alone" if source.classes else "no labels"
    if context.task.supervised:
        labels = f"{len(model.classes)} classes"
    together = f" · {context.processes.size} processes" if context.processes.size > 1 else ""
    height, width = images.preprocessing.img_size
    display.say(
        f"{source.name}: {len(images.train):,} training images, {labels} · "
        f"{name_of_start(settings.model)}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{height}x{width} px · {context.device.type}, {settings.train.precision}{together}"
    )
    if skipped:
        files = f"{skipped:,} file{'s' * (skipped != 1)}"
        display.say(f"left out: {files} that can't be read, named in {context.folder / 'skipped.txt'}")


def name_of_start(cfg: ModelSection) -> str:
    """Name of the model, and of the weights that it starts from."""
    return cfg.name if cfg.weights in (None, SCRATCH) else f"{cfg.name} from {cfg.weights}"


def build_task(context: Context, model: Backbone, images: Images) -> Task:
    """The task around the model. Raises ValueError for settings that optimizer, sharding or task refuse, before probing."""
    settings, processes = context.settings, context.processes
    group_table(model, settings.optim)
    if context.sharded:
        processes.told_once(lambda: require_shardable(model, processes, dtype=context.dtype))
    task = context.task.build(
        settings,
        model,
        split=images.train,
        preprocessing=images.preprocessing,
        classes=model.classes,
        device=context.device,
        autocast_dtype=context.dtype,
    )
    if context.sharded and task.companions():
        beside = " and ".join(task.companions())
        processes.told_once(lambda: refuse_shard(settings.train.task, beside))
    return task


def refuse_shard(task: str, beside: str) -> NoReturn:
    """Raises ValueError for a model in parts beside modules that every process would have for itself."""
    raise ValueError(f"train.shard is for the model alone, and train.task {task} also trains a {beside}; leave it out")


def prepare_task(context: Context, task: Task, images: Images) -> float:
    """Compute what the task needs once, before the first step. Return the seconds that it took."""
    line, processes = task.preparation(len(images.train)), context.processes
    if not line:
        return 0.0
    context.display.say(line)
    start, view = time.perf_counter(), training_view(context, images.preprocessing)
    if tuple(view.names) != tuple(images.train.names):
        raise ValueError(f"the images of {context.source.name} changed while they were read; start again")
    task.prepare(view, among=Among(Part(processes.rank, processes.size), gather=processes.gather))
    return processes.greatest(time.perf_counter() - start)[0]


def probe_first(context: Context, model: Backbone, images: Images) -> bool:
    """Score k-NN and a linear probe on the frozen features of pretrained weights; the probe becomes the head.

    Prints, and keeps in ladder.json, what they reach. Returns whether the run is to stop there.
    """
    cfg, display, processes = context.settings.train, context.display, context.processes
    pretrained = context.settings.model.weights not in (None, SCRATCH)
    if context.resumed or not (pretrained and cfg.ladder and context.task.supervised) or context.source.multi_label:
        return False
    display.say("first k-NN and a linear probe on frozen features (train.ladder false leaves them out):")
    rungs = climb(
        model.eval(),
        {**images.views, "train": training_view(context, images.preprocessing)},
        preprocessing=images.preprocessing,
        num_classes=len(model.classes),
        device=context.device,
        autocast_dtype=context.dtype,
        seed=cfg.seed,
    )
    rungs = processes.on_first(lambda: rungs)  # the others' may differ in the last bits, and what follows may not
    for line in rungs.lines():
        display.say(f"  {line}")
    if processes.first:
        write_whole(context.folder / "ladder.json", json.dumps(rungs.to_dict(), indent=2, allow_nan=False) + "\n")
    stop = cfg.stop_early and not rungs.advice.finetune
    if stop or (cfg.probe_head and has_linear_head(model)):
        apply_probe(model, rungs.probe)
    elif cfg.probe_head:
        display.say("the head is not one linear layer, so it can't start as the probe; it starts from random weights")
    return stop


def place_weights(context: Context, model: Backbone, mean: Backbone | None) -> None:
    """Compile the blocks, then shard model and running mean, as the settings ask: torch wants them in this order."""
    cfg = context.settings.train
    if cfg.compile:
        # all blocks share one list of graphs: learning, frozen or scored, at one size or any; the default of 8 is too short
        torch.compiler.config.recompile_limit = 32
        for part in model.blocks_in_order() or [model]:
            part.compile()
    if context.sharded:
        for one in [model] if mean is None else [model, mean]:
            shard(one, context.processes, device=context.device, dtype=context.dtype)
    elif cfg.shard:
        context.display.say("train.shard: this one process has all of every weight")


# --------------------------------------------------------------------------------------------------------------------
# Scores and length


def score_model(
    task: Task,
    model: Backbone,
    watch: Callable[[], None],
    *,
    split: Split,
    device: torch.device,
    dtype: torch.dtype | None,
    processes: World = ALONE,
) -> Scores | None:
    """The task's scores of a model on a split, of which each process sees its part; `watch` is called between two batches."""
    processes.same_buffers(model)
    among = Among(Part(processes.rank, processes.size), gather=processes.gather, watch=watch)
    return task.evaluate(split, model=model, device=device, autocast_dtype=dtype, among=among)


def pace_for(settings: Settings, split: Split, *, prepared_s: float = 0.0) -> Pace:
    """Length of the run in steps, or in seconds to which the steps are fitted; what the task prepared is part of these."""
    cfg = settings.train
    if cfg.minutes is not None:
        return Pace(None, seconds=max(60 * cfg.minutes - prepared_s, 1.0))
    if cfg.steps is not None:
        return Pace(cfg.steps)
    epochs = DEFAULT_EPOCHS if cfg.epochs is None else cfg.epochs
    return Pace(max(1, round(epochs * steps_per_epoch(split, batch_size=cfg.batch_size))))

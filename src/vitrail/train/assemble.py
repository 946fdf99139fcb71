"""Assembly of a training loop from a plan: images, model, task, optimizers."""

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

from vitrail.data.apply_colors import apply_compiled_
from vitrail.data.batches import Part, steps_per_epoch
from vitrail.data.dataset import Source, Split, SplitName
from vitrail.evaluate import Scores
from vitrail.evaluate.evaluate import Among
from vitrail.models import build_model
from vitrail.models.backbone import Backbone
from vitrail.models.card import Kind
from vitrail.models.device import autocast_dtype, keep_freed_memory, pick_device
from vitrail.models.fp8 import train_in_fp8
from vitrail.settings import SCRATCH, DataConfig, ModelSection, Preprocessing, Settings, TrainConfig
from vitrail.tasks import TASKS, Task, TaskSpec
from vitrail.train.before_after import held_out_split, score_frozen, write_start
from vitrail.train.distributed import SINGLE_PROCESS, World, local_device, require_shardable, shard
from vitrail.train.folder import write_skipped, write_text_atomically
from vitrail.train.guard import Guard
from vitrail.train.ladder import apply_probe, has_linear_head, run_baselines
from vitrail.train.loop import Loop
from vitrail.train.notes import check_warmup
from vitrail.train.optim import Optimizers, build_optimizers, group_table
from vitrail.train.pace import Pace
from vitrail.train.plan import Plan, resolve_preprocessing
from vitrail.train.progress import Display, Metrics
from vitrail.train.replay import ReplayedStep
from vitrail.train.step import Ema, Step, loss_scaler
from vitrail.train.watch import Watch

DEFAULT_EPOCHS = 100.0


@dataclass(frozen=True, eq=False)
class Context:
    """A plan, and the process that runs it."""

    plan: Plan
    folder: Path
    display: Display
    processes: World = SINGLE_PROCESS
    resumed: bool = False
    """True where the weights come from a checkpoint of the run: then none are loaded, and nothing is probed."""
    measured_s: float = 0.0
    """Seconds of the run's minutes that the measurement of its pace took."""

    @property
    def settings(self) -> Settings:
        """Settings of the run."""
        return self.plan.settings

    @property
    def source(self) -> Source:
        """Data set."""
        return self.plan.source

    @property
    def task(self) -> TaskSpec:
        """Row of `TASKS`."""
        return TASKS[self.settings.train.task]

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return local_device(pick_device(self.settings.train.device))

    @property
    def dtype(self) -> torch.dtype | None:
        """Autocast dtype; None for fp32."""
        return autocast_dtype(self.settings.train.precision, self.device)

    @property
    def data(self) -> DataConfig:
        """Section `data`, with this process's share of the machine's memory and cores."""
        return divide_resources(self.settings.data, self.processes.local_size)

    @property
    def sharded(self) -> bool:
        """True where each process keeps only its shard of the weights."""
        return self.settings.train.shard and (not self.resumed or self.processes.size > 1)


@dataclass(frozen=True, eq=False)
class Images:
    """Splits of a run."""

    train: Split
    views: Mapping[str, Split]
    """Validation and test images in evaluation view."""
    preprocessing: Preprocessing
    fingerprint: str
    """Hash of the names of all images in their order."""


def assemble(context: Context, images: Images) -> Loop:
    """Build the training loop of a run at step 0 on its images. In this order:

    1. the model, with random or pretrained weights, and its card;
    2. the task around it, and its preparation before the first step;
    3. k-NN and a linear probe of pretrained weights;
    4. scores of the starting weights of a task without labels, to compare with at the end;
    5. running mean, blocks in fp8 or compiled, sharded weights;
    6. optimizers, and the length of the run.
    """
    cfg, display, processes, device = context.settings.train, context.display, context.processes, context.device
    keep_memory(cfg)
    skipped = write_skipped(context.folder, images.train, *images.views.values()) if processes.first else 0
    model = build_start_model(context, images.preprocessing)
    announce(context, images, model, skipped=skipped)
    task = build_task(context, model, images)
    prepared_s = prepare_task(context, task, images)
    stopped = run_probe_first(context, model, images)
    score_start(context, task, images)
    mean = copy.deepcopy(model) if cfg.ema_decay else None
    compile_and_shard(context, task, mean)
    optimizers = build_optimizers(model, context.settings.optim, batch_size=cfg.batch_size, companions=task.companions())
    pace = build_pace(context.settings, images.train, prepared_s=context.measured_s + prepared_s)
    if line := check_warmup(context.settings.optim.warmup, pace.total):
        display.say(f"note: {line}")
    evaluate: Callable[[Backbone, Callable[[], None]], Scores | None] | None = None
    if len(images.views.get("val", ())):
        evaluate = functools.partial(
            score_model, task, split=images.views["val"], device=device, dtype=context.dtype, processes=processes
        )
    train_step = build_step(context, task, optimizers)
    replay = cfg.graph and not cfg.compile and ReplayedStep.supports(train_step, device)
    return Loop(
        settings=context.settings,
        folder=context.folder,
        split=images.train,
        views=images.views,
        preprocessing=images.preprocessing,
        reading=context.task.reading(context.settings, images.preprocessing)[0],
        device=device,
        train_step=train_step,
        take_step=ReplayedStep(train_step, display.say) if replay else train_step,
        ema=None if mean is None else Ema(model, mean, cfg.ema_decay),
        pace=pace,
        evaluate=evaluate,
        metrics=Metrics(context.folder) if processes.first else None,
        display=display,
        world=processes,
        stopped_at_probe=stopped,
        fingerprint=images.fingerprint,
        pictures=context.task.pictures,
        watch=None if context.task.supervised else build_watch(context, images),
        seen_before=0 if context.plan.weights is None else model.card.images_seen,
        receipt=model.receipt,
    )


def keep_memory(cfg: TrainConfig) -> None:
    """Keep freed memory for the next step, unless a setting that exists to save memory is on."""
    keep_freed_memory(not (cfg.checkpointing or cfg.shard))


# --------------------------------------------------------------------------------------------------------------------
# Images


def open_images(context: Context) -> Images:
    """Open all splits, the same in every process, and move small ones to a GPU.

    Raises ValueError where processes see different images.
    """
    processes, preprocessing = context.processes, resolve_preprocessing(context.source, context.settings)
    images = processes.raise_once(lambda: load_images(context, preprocessing))
    if len(set(processes.gather(images.fingerprint))) > 1:
        processes.raise_once(lambda: refuse_other_images(context.source))
    return move_small_sets(images, context.device)


def load_images(context: Context, preprocessing: Preprocessing) -> Images:
    """Load training images with augmentation, the others in evaluation view. Raises ValueError without training images."""
    source, settings = context.source, context.settings
    augment, canvas = context.task.reading(settings, preprocessing)
    split = source.load("train", preprocessing=canvas, cfg=context.data, augment=augment)
    if not len(split):
        raise ValueError(f"{source.name} has no training images; lower data.val_fraction {settings.data.val_fraction}")
    others: list[SplitName] = [name for name in source.splits if name != "train"]
    views: dict[str, Split] = {name: source.load(name, preprocessing=preprocessing, cfg=context.data) for name in others}
    names = "\0".join(chain(split.names, *(view.names for view in views.values())))
    fingerprint = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    return Images(split, views, preprocessing, fingerprint)


def move_small_sets(images: Images, device: torch.device) -> Images:
    """Move sets in memory to a GPU, where all of them together take a quarter of its free memory at most."""
    if device.type != "cuda":
        return images
    budget_bytes = torch.cuda.mem_get_info(device)[0] / 4 / (1 + len(images.views))
    views = {name: view.on(device, budget_bytes=budget_bytes) for name, view in images.views.items()}
    return dataclasses.replace(images, train=images.train.on(device, budget_bytes=budget_bytes), views=views)


def load_training_view(context: Context, preprocessing: Preprocessing) -> Split:
    """Load the training images in evaluation view."""
    return context.source.load("train", preprocessing=preprocessing, cfg=context.data)


def refuse_other_images(source: Source) -> NoReturn:
    """Raise ValueError for processes that do not see the same images."""
    raise ValueError(f"the processes do not read the same images of {source.name}; let all machines see the same files")


def divide_resources(data: DataConfig, processes: int) -> DataConfig:
    """Return the settings `data` of one of several processes on a machine: its share of memory and cores."""
    if processes == 1:
        return data
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, cores // processes) if data.workers < 0 else data.workers
    return dataclasses.replace(data, memory_gb=data.memory_gb / processes, workers=workers)


# --------------------------------------------------------------------------------------------------------------------
# Model and task


def build_start_model(context: Context, preprocessing: Preprocessing) -> Backbone:
    """Build the model with its initial weights and card, on its device."""
    settings, source = context.settings, context.source
    torch.manual_seed(settings.train.seed)
    weights = None if context.resumed else context.plan.weights
    model = build_model(settings.model) if weights is None else weights.build(config_fields(settings.model))
    model = model.to(context.device)
    kind: Kind = "multi-label" if source.multi_label and context.task.supervised else "classify"
    model.card = dataclasses.replace(
        model.card,
        preprocessing=preprocessing,
        classes=context.task.classes(source),
        task=kind,
        calibration=None,  # that of the starting weights will not fit
    )
    model.checkpointing = settings.train.checkpointing
    return model


def config_fields(section: ModelSection) -> dict[str, object]:
    """Return the fields of a model's config, which a checkpoint is adapted to."""
    shape = section.shape()
    return {field.name: getattr(shape, field.name) for field in dataclasses.fields(shape) if field.name != "name"}


def announce(context: Context, images: Images, model: Backbone, *, skipped: int) -> None:
    """Print receipt, data, model and device, and the number of unreadable files."""
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
        f"{describe_start(settings.model)}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{height}x{width} px · {context.device.type}, {settings.train.precision}{together}"
    )
    if skipped:
        files = f"{skipped:,} file{'s' * (skipped != 1)}"
        display.say(f"left out: {files} that can't be read, named in {context.folder / 'skipped.txt'}")


def describe_start(cfg: ModelSection) -> str:
    """Return the name of the model, and of its initial weights."""
    return cfg.name if cfg.weights in (None, SCRATCH) else f"{cfg.name} from {cfg.weights}"


def build_task(context: Context, model: Backbone, images: Images) -> Task:
    """Build the task around the model. Raises ValueError for settings invalid for optimizer, sharding or task."""
    settings, processes = context.settings, context.processes
    group_table(model, settings.optim)
    if context.sharded:
        processes.raise_once(lambda: require_shardable(model, processes, dtype=context.dtype))
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
        processes.raise_once(lambda: refuse_shard(settings.train.task, beside))
    return task


def refuse_shard(task: str, beside: str) -> NoReturn:
    """Raise ValueError for a sharded model with companion modules, which every process would train for itself."""
    raise ValueError(f"train.shard is for the model alone, and train.task {task} also trains a {beside}; leave it out")


def prepare_task(context: Context, task: Task, images: Images) -> float:
    """Run the task's preparation before the first step. Return its duration in seconds."""
    resumed, processes = context.resumed, context.processes
    line = task.preparation(len(images.train), resumed=resumed)
    if not line:
        return 0.0
    context.display.say(line)
    start, view = time.perf_counter(), load_training_view(context, images.preprocessing)
    if tuple(view.names) != tuple(images.train.names):
        raise ValueError(f"the images of {context.source.name} changed while they were read; start again")
    task.prepare(view, among=Among(Part(processes.rank, processes.size), gather=processes.gather), resumed=resumed)
    if line := task.prepared():
        context.display.say(line)
    return processes.max(time.perf_counter() - start)[0]


def run_probe_first(context: Context, model: Backbone, images: Images) -> bool:
    """Score k-NN and a linear probe on the frozen features of pretrained weights; the probe becomes the head.

    Prints their accuracies, and writes them to ladder.json. Returns True where the run stops at the probe.
    """
    cfg, display, processes = context.settings.train, context.display, context.processes
    pretrained = context.settings.model.weights not in (None, SCRATCH)
    if context.resumed or not (pretrained and cfg.ladder and context.task.supervised) or context.source.multi_label:
        return False
    display.say("first k-NN and a linear probe on frozen features (train.ladder false leaves them out):")
    baselines = run_baselines(
        model.eval(),
        {**images.views, "train": load_training_view(context, images.preprocessing)},
        preprocessing=images.preprocessing,
        num_classes=len(model.classes),
        device=context.device,
        autocast_dtype=context.dtype,
        seed=cfg.seed,
    )
    baselines = processes.run_on_first(lambda: baselines)  # the others' may differ in the last bits, and what follows may not
    for line in baselines.lines():
        display.say(f"  {line}")
    if processes.first:
        write_text_atomically(context.folder / "ladder.json", json.dumps(baselines.to_dict(), indent=2, allow_nan=False) + "\n")
    stop = cfg.stop_early and not baselines.advice.finetune
    if stop or (cfg.probe_head and has_linear_head(model)):
        apply_probe(model, baselines.probe)
    elif cfg.probe_head:
        display.say("the head is not one linear layer, so it can't start as the probe; it starts from random weights")
    return stop


def score_start(context: Context, task: Task, images: Images) -> None:
    """Score the starting weights of a run without labels, and write them to the run folder; a resumed run has them there."""
    if context.resumed or not context.settings.train.compare or context.task.supervised:
        return
    name = held_out_split(images.views)
    if name is None:
        context.display.say("note: there are no held-out images, so what pre-training is worth is not measured (train.compare)")
        return
    context.display.say("scoring the starting weights, to compare with at the end (train.compare false leaves it out)")
    scores = score_frozen(
        task,
        task.product(),
        images.views[name],
        num_classes=len(context.source.classes),
        seed=context.settings.train.seed,
        device=context.device,
        autocast_dtype=context.dtype,
        world=context.processes,
    )
    if context.processes.first:
        write_start(context.folder, scores)


def build_watch(context: Context, images: Images) -> Watch:
    """Build the guard and the pictures of a run without labels, on the validation images, or without any on training images."""
    settings, val = context.settings, images.views.get("val", ())
    return Watch(
        folder=context.folder,
        guard=Guard(settings.guard),
        images=images.views["val"] if len(val) else load_training_view(context, images.preprocessing),
        preprocessing=images.preprocessing,
        device=context.device,
        autocast_dtype=context.dtype,
        world=context.processes,
        keeps_best=settings.train.keep_best or settings.guard.stop,
    )


def build_step(context: Context, task: Task, optimizers: Optimizers) -> Step:
    """Build the training step."""
    return Step(
        task,
        optimizers,
        autocast_dtype=context.dtype,
        clip_norm=context.settings.optim.clip_norm,
        accumulate=context.settings.train.accumulate,
        scaler=loss_scaler(context.device, context.dtype),
        world=context.processes,
    )


def compile_and_shard(context: Context, task: Task, mean: Backbone | None) -> None:
    """Let the blocks compute in fp8; compile them, those of a teacher that is the product, and colours; shard model and mean.

    Each where the settings ask for it; torch requires this order.
    """
    cfg, model = context.settings.train, task.model
    if cfg.precision == "fp8":
        train_in_fp8(model)
    if cfg.compile:
        # all blocks share one graph cache (learning, frozen or scored, of one size or any): the default of 8 is too short
        torch.compiler.config.recompile_limit = 32
        if context.device.type == "cuda":  # on a CPU the compiled colours take three times as long
            task.apply_colors = apply_compiled_
        for backbone in dict.fromkeys((model, task.product())):
            for part in backbone.blocks_in_order() or [backbone]:
                part.compile()
    if context.sharded:
        for backbone in [model] if mean is None else [model, mean]:
            shard(backbone, context.processes, device=context.device, dtype=context.dtype)
    elif cfg.shard:
        context.display.say("train.shard has no effect in a single process")


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
    processes: World = SINGLE_PROCESS,
) -> Scores | None:
    """Score a model on a split, of which each process evaluates its share; `watch` is called between two batches."""
    processes.broadcast_buffers(model)
    among = Among(Part(processes.rank, processes.size), gather=processes.gather, watch=watch)
    return task.evaluate(split, model=model, device=device, autocast_dtype=dtype, among=among)


def build_pace(settings: Settings, split: Split, *, prepared_s: float = 0.0) -> Pace:
    """Return the length of the run, in steps or in seconds; `prepared_s` is subtracted from the latter."""
    cfg = settings.train
    if cfg.minutes is not None:
        return Pace(None, seconds=max(60 * cfg.minutes - prepared_s, 1.0))
    if cfg.steps is not None:
        return Pace(cfg.steps)
    epochs = DEFAULT_EPOCHS if cfg.epochs is None else cfg.epochs
    return Pace(max(1, round(epochs * steps_per_epoch(split, batch_size=cfg.batch_size))))

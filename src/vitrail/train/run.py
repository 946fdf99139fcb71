"""From settings to a run folder: `train` starts a run, `resume` goes on with one."""

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
from typing import Any, Literal, NoReturn

import torch
from rich.console import Console

from vitrail.config import SCRATCH, DataConfig, ModelSection, Preprocessing, Settings, TrainConfig, nearest
from vitrail.data.batches import Part, steps_per_epoch
from vitrail.data.dataset import Source, Split, SplitName
from vitrail.data.sources import open_source
from vitrail.evaluate import Scores, save_evaluation
from vitrail.evaluate.evaluate import Among
from vitrail.evaluate.metrics import headline_text
from vitrail.models import build_model, meta_model
from vitrail.models.backbone import Backbone
from vitrail.models.card import Kind
from vitrail.models.device import autocast_dtype, keep_freed_memory, pick_device
from vitrail.settings import layers
from vitrail.tasks import TASKS, Task
from vitrail.train.distributed import ALONE, World, is_sharded, own_device, require_shardable, shard, whole, world
from vitrail.train.folder import (
    CALL,
    clear,
    found,
    free_folder,
    goes_on,
    locked,
    new_folder,
    require_unfinished,
    settings_of,
    write_skipped,
    write_whole,
)
from vitrail.train.ladder import apply_probe, climb, has_linear_head
from vitrail.train.loop import Interrupt, Interrupted, Loop
from vitrail.train.notes import long_warmup
from vitrail.train.optim import build_optimizers, group_table
from vitrail.train.pace import Pace
from vitrail.train.progress import Display, Metrics, duration, truncate_metrics
from vitrail.train.settle import preprocessing_for, settled
from vitrail.train.step import Ema, Step, loss_scaler
from vitrail.weights import load as load_weights
from vitrail.weights import save_model
from vitrail.weights.run_folder import SETTINGS

DEFAULT_EPOCHS = 100.0


@dataclass(frozen=True)
class Run:
    """A finished training."""

    folder: Path
    evaluation: Scores
    """On the test images; on the validation images where the set has no test split (`split` says which)."""
    split: str
    seconds: float
    """Of training, without loading and the last evaluation."""
    steps: int
    task: str = "classify"
    """What was learned, as in `train.task`."""


def train(
    path: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
    minutes: float | None = None,
    model: str | Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    mae: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    """Trains on a named set or a folder, evaluates, and writes the run folder.

    Without `path`, on the sample that comes with the package. Without `recipe`, with the one for that set; from `weights`
    (whatever `vitrail.load` takes), with settings fitted to data, device and time, whose reasons are printed. The sections
    are mappings of single settings, `optim={"lr": 1e-3}`, and `model` may be a name. `out` is a folder that does not
    exist yet; without it, the next free one under runs/. With `resume` "auto" it may be one that the same call began: then
    that run goes on from its newest checkpoint, or begins anew where it has none.
    Started by torchrun, the processes train together. Raises ValueError, in one line, for what can't be.
    """
    sections = {"model": model, "data": data, "augment": augment, "optim": optim, "distill": distill}
    sections |= {"mae": mae, "train": train}
    said: dict[str, Any] = {name: section for name, section in sections.items() if section is not None}
    if minutes is not None:
        said["train"] = {**(train or {}), "minutes": minutes}
    top: dict[str, Any] = {"data": {"path": str(path)}} if path is not None else {}
    if weights is not None:
        top["model"] = {"weights": str(weights)}
    said = layers.merge(said, top)
    written = {} if config is None else layers.read_config(config)
    asked = layers.merge(written, said)
    if resume is not None and out is None:
        raise ValueError(f"--resume {resume} needs --out, the run folder to go on with")
    with world(own_device(pick_device(asked.get("train", {}).get("device", "auto")))) as processes:
        display = Display(console if processes.first else Console(quiet=True))
        where = asked.get("data", {}).get("path", "fashion-sample")
        call = json.loads(json.dumps({"asked": asked, "recipe": recipe}, default=str))
        if resume is not None:
            if processes.on_first(lambda: goes_on(Path(str(out)), call)):
                return _resume(Path(str(out)), processes, display)
            processes.on_first(lambda: clear(Path(str(out))))
        folder = processes.on_first(lambda: free_folder(out, where))
        settings = processes.on_first(
            lambda: settled(where, recipe=recipe, from_file=config is not None, written=written, said=said, display=display)
        )
        source = source_of(settings)
        with new_folder(folder, processes):
            if processes.first:
                write_whole(folder / CALL, json.dumps(call, indent=2) + "\n")
                write_whole(folder / SETTINGS, layers.to_yaml(settings))
            loop = prepare(settings, source, folder, display, processes, begin=True)
            if loop.stopped_at_probe:
                display.say("stopped at the probe, which is the model now")
                return conclude(loop, source)
            return finish(loop, source)


run_training = train
"""`train`, where an argument has that name."""


def pretrain(
    path: str | Path | None = None,
    *,
    method: str = "mae",
    weights: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
    minutes: float | None = None,
    model: str | Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    mae: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    """Train a backbone without labels, score its embedding, and write the run folder, whose model has no head.

    `path` is whatever `train` takes, or a folder of images without classes, loose or in any tree of folders. Labels, where
    there are some, are for the k-NN score alone. "mae" is the masked autoencoder (He et al. 2022), with the settings of the
    section `mae`. The other arguments are those of `train`; without `recipe`, the method's own. Raises ValueError, in one
    line, for an unknown method, for a model that can't learn by it, and as `train` does.
    """
    methods = [name for name, task in TASKS.items() if not task.supervised]
    if method not in methods:
        raise ValueError(f'method "{method}" is none of {", ".join(methods)}{nearest(method, methods)}')
    return run_training(
        path,
        weights=weights,
        recipe=recipe,
        config=config,
        out=out,
        resume=resume,
        minutes=minutes,
        model=model,
        data=data,
        augment=augment,
        optim=optim,
        distill=distill,
        mae=mae,
        train={**(train or {}), "task": method},
        console=console,
    )


def resume(folder: str | Path, *, workers: int | None = None, console: Console | None = None) -> Run:
    """Goes on with a run from its newest checkpoint. Raises ValueError where it is finished, or holds no checkpoint.

    `workers` are other loader processes than `data.workers` says, for these change nothing of what is learned.
    """
    settings = settings_of(Path(folder))
    with world(own_device(pick_device(settings.train.device))) as processes:
        display = Display(console if processes.first else Console(quiet=True))
        return _resume(Path(folder), processes, display, workers=workers)


def _resume(folder: Path, processes: World, display: Display, *, workers: int | None = None) -> Run:
    """`resume`, in the processes of a run."""
    with locked(folder, processes):
        return _go_on(folder, processes, display, workers=workers)


def _go_on(folder: Path, processes: World, display: Display, *, workers: int | None) -> Run:
    require_unfinished(folder)  # in every process: none of them has failed
    path, state, damaged = processes.on_first(lambda: found(folder))
    for line in damaged:
        display.say(f"passed over: {line}")
    settings = settings_of(folder)
    if workers is not None:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, workers=workers))
    source = processes.told_once(lambda: source_of(settings))
    if processes.first:  # before the loop opens the file, or it would write into the old one
        truncate_metrics(folder, step=state["step"], evaluated=state["evaluated"])
    processes.barrier()
    loop = prepare(settings, source, folder, display, processes, begin=False)
    processes.told_once(lambda: loop.restore(path, state))
    display.say(f"going on at step {loop.step:,}")
    return finish(loop, source)


def prepare(
    settings: Settings, source: Source, folder: Path, display: Display, processes: World = ALONE, *, begin: bool
) -> Loop:
    """Everything a training is made of, at step 0; to `begin`, with the weights that it starts from, and the ladder."""
    cfg, spec = settings.train, TASKS[settings.train.task]
    device = own_device(pick_device(cfg.device))
    keep_freed_memory(not (cfg.checkpointing or cfg.shard))  # these are there to save memory
    dtype = autocast_dtype(cfg.precision, device)
    images = preprocessing_for(source, settings)
    data = shared_by(settings.data, processes.neighbours)
    split, views, images_are = processes.told_once(lambda: images_of(source, settings, images, data))
    if len(set(processes.gather(images_are))) > 1:
        processes.told_once(lambda: refuse_other_images(source))
    skipped = write_skipped(folder, split, *views.values()) if processes.first else 0

    torch.manual_seed(cfg.seed)
    model = model_for(settings.model, begin=begin).to(device)
    if model.receipt is not None:
        for line in str(model.receipt).split("\n"):
            display.say(line)
    classes = spec.classes(source)
    kind: Kind = "multi-label" if source.multi_label and spec.supervised else "classify"
    model.card = dataclasses.replace(model.card, preprocessing=images, classes=classes, task=kind)
    model.checkpointing = cfg.checkpointing
    labels = f"{len(classes)} classes" if spec.supervised else "labels for the scores alone" if source.classes else "no labels"
    together = f" · {processes.size} processes" if processes.size > 1 else ""
    display.say(
        f"{source.name}: {len(split):,} training images, {labels} · "
        f"{name_of_start(settings.model)}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{images.img_size[0]}x{images.img_size[1]} px · "
        f"{device.type}, {cfg.precision}{together}"
    )
    if skipped:
        files = f"{skipped:,} file{'s' * (skipped != 1)}"
        display.say(f"left out: {files} that can't be read, named in {folder / 'skipped.txt'}")
    group_table(model, settings.optim)  # what can't be says so before the ladder
    in_parts = cfg.shard and (begin or processes.size > 1)
    if in_parts:
        processes.told_once(lambda: require_shardable(model, processes, dtype=dtype))
    task = spec.build(settings, model, split=split, preprocessing=images, classes=classes, device=device, autocast_dtype=dtype)
    if in_parts and task.companions():
        beside = " and ".join(task.companions())
        processes.told_once(lambda: refuse_shard(cfg.task, beside))
    asked_s = 0.0
    if line := task.preparation(len(split)):
        display.say(line)
        start, view = time.perf_counter(), source.load("train", preprocessing=images, cfg=data)
        if tuple(view.names) != tuple(split.names):
            raise ValueError(f"the images of {source.name} changed while they were read; start again")
        task.prepare(view, among=Among(Part(processes.rank, processes.size), gather=processes.gather))
        asked_s = processes.greatest(time.perf_counter() - start)[0]
    stop = False
    probed = spec.supervised and settings.model.weights not in (None, SCRATCH) and cfg.ladder
    if begin and probed and not source.multi_label:
        known = {**views, "train": source.load("train", preprocessing=images, cfg=data)}
        stop = climb_first(model, known, cfg, folder, display, processes, device=device, dtype=dtype)
    mean = copy.deepcopy(model) if cfg.ema_decay else None
    if cfg.compile:  # blocks before they are in parts, as torch has it
        # all blocks share one list of graphs: learning, frozen or scored, at one size or any; the default of 8 is too short
        torch.compiler.config.recompile_limit = 32
        for part in model.blocks_in_order() or [model]:
            part.compile()
    if cfg.shard and not in_parts:
        display.say("train.shard: this one process has all of every weight")
    elif in_parts:
        for one in [model] if mean is None else [model, mean]:
            shard(one, processes, device=device, dtype=dtype)
    optimizers = build_optimizers(model, settings.optim, batch_size=cfg.batch_size, companions=task.companions())
    pace = pace_for(settings, split, asked_s=asked_s)
    if told := long_warmup(settings.optim.warmup, pace.total):
        display.say(f"note: {told}")
    score = None
    if len(views.get("val", ())):
        score = functools.partial(score_model, task, split=views["val"], device=device, dtype=dtype, processes=processes)
    return Loop(
        settings=settings,
        folder=folder,
        split=split,
        views=views,
        preprocessing=images,
        device=device,
        move=Step(
            task,
            optimizers,
            autocast_dtype=dtype,
            clip_norm=settings.optim.clip_norm,
            accumulate=cfg.accumulate,
            scaler=loss_scaler(device, dtype),
            world=processes,
        ),
        ema=None if mean is None else Ema(model, mean, cfg.ema_decay),
        pace=pace,
        evaluate=score,
        metrics=Metrics(folder) if processes.first else None,
        display=display,
        world=processes,
        stopped_at_probe=stop,
        images_are=images_are,
        pictures=spec.pictures,
    )


def refuse_shard(task: str, beside: str) -> NoReturn:
    """Raises ValueError for a model in parts beside modules that every process would have for itself."""
    raise ValueError(f"train.shard is for the model alone, and train.task {task} also trains a {beside}; leave it out")


def images_of(
    source: Source, settings: Settings, images: Preprocessing, data: DataConfig
) -> tuple[Split, dict[str, Split], str]:
    """The training images, the evaluation views of the others, and a hash of the names of all in their order.

    Raises ValueError where there is nothing to train on.
    """
    split = source.load("train", preprocessing=images, cfg=data, augment=settings.augment)
    if not len(split):
        raise ValueError(f"{source.name} has no training images; lower data.val_fraction {settings.data.val_fraction}")
    others: list[SplitName] = [name for name in source.splits if name != "train"]
    views: dict[str, Split] = {name: source.load(name, preprocessing=images, cfg=data) for name in others}
    names = "\0".join(chain(split.names, *(view.names for view in views.values())))
    return split, views, hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def refuse_other_images(source: Source) -> NoReturn:
    """Raises ValueError for processes that do not see the same images."""
    raise ValueError(f"the processes do not read the same images of {source.name}; let all machines see the same files")


def source_of(settings: Settings) -> Source:
    """The data set of a run."""
    task = TASKS[settings.train.task]
    return open_source(settings.data.path, val_fraction=settings.data.val_fraction, classes=task.supervised)


def shared_by(data: DataConfig, processes: int) -> DataConfig:
    """The data's settings of one of several processes on a machine: its part of the memory and of the cores."""
    if processes == 1:
        return data
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, cores // processes) if data.workers < 0 else data.workers
    return dataclasses.replace(data, memory_gb=data.memory_gb / processes, workers=workers)


def finish(loop: Loop, source: Source) -> Run:
    """Trains to the end, saves the model and scores it."""
    loop.display.say(f"run folder {loop.folder}")
    try:
        loop.run()
    finally:
        if loop.metrics is not None:
            loop.metrics.close()
    return conclude(loop, source)


def climb_first(
    model: Backbone,
    splits: Mapping[str, Split],
    cfg: TrainConfig,
    folder: Path,
    display: Display,
    processes: World,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
) -> bool:
    """k-NN and a linear probe on what the weights give before they are trained; the probe becomes the head.

    Says, and ladder.json keeps, what they reach. Returns whether the run is to stop there.
    """
    display.say("first k-NN and a linear probe on frozen features (train.ladder false leaves them out):")
    assert model.preprocessing is not None
    rungs = climb(
        model.eval(),
        splits,
        preprocessing=model.preprocessing,
        num_classes=len(model.classes),
        device=device,
        autocast_dtype=dtype,
        seed=cfg.seed,
    )
    rungs = processes.on_first(lambda: rungs)  # the others' may differ in the last bits, and what follows may not
    for line in rungs.lines():
        display.say(f"  {line}")
    if processes.first:
        write_whole(folder / "ladder.json", json.dumps(rungs.to_dict(), indent=2, allow_nan=False) + "\n")
    stop = cfg.stop_early and not rungs.advice.finetune
    if stop or (cfg.probe_head and has_linear_head(model)):
        apply_probe(model, rungs.probe)
    elif cfg.probe_head:
        display.say("the head is not one linear layer, so it can't start as the probe; it starts from random weights")
    return stop


def conclude(loop: Loop, source: Source) -> Run:
    """Saves the model and scores it."""
    model, processes = loop.trained.eval(), loop.world
    loop.move.optimizers.forget()
    processes.same_buffers(model)
    complete = put_together(model, loop.settings.model, processes)
    if complete is not None:
        save_model(complete, loop.folder, data=loop.settings.data.path)
    del complete
    which = next((name for name in ("test", "val") if len(loop.views.get(name, ()))), "train")
    data = shared_by(loop.settings.data, processes.neighbours)
    split = loop.views.get(which) or source.load("train", preprocessing=loop.preprocessing, cfg=data)
    with Interrupt() as interrupt:

        def watch() -> None:
            if asked := processes.greatest(interrupt.number)[0]:
                way = "`vitrail evaluate`" if loop.stopped_at_probe else "`vitrail resume`"
                raise Interrupted(f"the model is trained and saved; {way} {loop.folder} scores it", number=int(asked))

        scores = score_model(
            loop.task, model, watch, split=split, device=loop.device, dtype=loop.move.autocast_dtype, processes=processes
        )
        assert scores is not None
    name, value, low, high = headline_text(scores, decimals=2)
    loop.draw(loop.views.get("val") or split)
    for lost in processes.gather([split.skipped for split in (loop.split, *loop.views.values())]):
        loop.split.record([item for part in lost for item in part])
    if processes.first:
        write_skipped(loop.folder, loop.split, *loop.views.values())
        save_evaluation(scores, loop.folder, data=source.name, split=which)
    loop.display.say(
        f"{which} {name} {value} (95 % interval {low} to {high}) on {scores.count:,} images, "
        f"after {loop.step:,} steps in {duration(loop.pace.elapsed)}"
    )
    processes.barrier()  # nobody leaves while the first still writes
    task = loop.settings.train.task
    return Run(folder=loop.folder, evaluation=scores, split=which, seconds=loop.pace.elapsed, steps=loop.step, task=task)


def put_together(model: Backbone, cfg: ModelSection, processes: World) -> Backbone | None:
    """The model with whole weights in the first process, None in the others, all of which give their parts."""
    if not is_sharded(model):
        return model if processes.first else None
    state = {}
    for name, value in model.state_dict().items():
        full = whole(value)
        if processes.first:
            state[name] = full.cpu()
    if not processes.first:
        return None
    complete = meta_model(cfg)
    complete.load_state_dict(state, assign=True)
    complete.card = model.card
    return complete.eval()


def name_of_start(cfg: ModelSection) -> str:
    """The model's name and what its weights start from."""
    return cfg.name if cfg.weights in (None, SCRATCH) else f"{cfg.name} from {cfg.weights}"


def model_for(cfg: ModelSection, *, begin: bool) -> Backbone:
    """The model to train; to `begin`, with the weights that it starts from."""
    if not begin or cfg.weights in (None, SCRATCH):
        return build_model(cfg)
    shape = cfg.shape()
    fields = {field.name: getattr(shape, field.name) for field in dataclasses.fields(shape) if field.name != "name"}
    return load_weights(str(cfg.weights), **fields)


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


def pace_for(settings: Settings, split: Split, *, asked_s: float = 0.0) -> Pace:
    """The run's length in steps, or in seconds to which the steps are fitted; a teacher's answers are part of these."""
    cfg = settings.train
    if cfg.minutes is not None:
        return Pace(None, seconds=max(60 * cfg.minutes - asked_s, 1.0))
    if cfg.steps is not None:
        return Pace(cfg.steps)
    epochs = DEFAULT_EPOCHS if cfg.epochs is None else cfg.epochs
    return Pace(max(1, round(epochs * steps_per_epoch(split, batch_size=cfg.batch_size))))

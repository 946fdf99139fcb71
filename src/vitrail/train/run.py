"""From settings to a run folder: `train` starts a run, `resume` goes on with one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from vitrail.config import (
    SCRATCH,
    DataConfig,
    ModelConfig,
    Preprocessing,
    Settings,
    TrainConfig,
    ViTConfig,
    is_baseline,
    name_of,
    pair,
    parse_name,
)
from vitrail.data.batches import Part, steps_per_epoch
from vitrail.data.dataset import Source, Split, SplitName
from vitrail.data.sources import NAMES, open_source
from vitrail.evaluate import Evaluation, MultiLabelEvaluation, evaluate, evaluate_labels, save_evaluation
from vitrail.evaluate.evaluate import Among
from vitrail.models import Baseline, ViT, baseline_fields, build_model, check_model
from vitrail.models.device import autocast_dtype, keep_freed_memory, pick_device
from vitrail.train import advice, checkpoint
from vitrail.train import settings as layers
from vitrail.train.distributed import ALONE, World, is_sharded, own_device, shard, whole, world
from vitrail.train.ladder import apply_probe, climb, has_linear_head
from vitrail.train.loop import Interrupt, Interrupted, Loop
from vitrail.train.notes import unused
from vitrail.train.objectives import build_objective
from vitrail.train.optim import build_optimizers, group_table
from vitrail.train.pace import Pace
from vitrail.train.progress import Display, Metrics, duration, truncate_metrics
from vitrail.train.sizes import check_sizes
from vitrail.train.step import Ema, Step, loss_scaler
from vitrail.weights import load as load_weights
from vitrail.weights import save_model
from vitrail.weights.run_folder import SETTINGS, sha256

DEFAULT_EPOCHS = 100.0
CALL = "call.json"
"""What was asked for when a run began; `resume="auto"` compares it."""
BEGUN = frozenset({CALL, SETTINGS, "metrics.jsonl", "skipped.txt", "ladder.json"})
"""Files that a run has written when it comes to its first checkpoint."""
OUTCOMES = ("model.safetensors", "evaluation.json")
PHOTO_SIZE = 224
"""Side in pixels for photographs, where no setting says another."""


@dataclass(frozen=True)
class Run:
    """A finished training."""

    folder: Path
    evaluation: Evaluation | MultiLabelEvaluation
    """On the test images; on the validation images where the set has no test split (`split` says which)."""
    split: str
    seconds: float
    """Of training, without loading and the last evaluation."""
    steps: int


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
    sections = {"model": model, "data": data, "augment": augment, "optim": optim, "distill": distill, "train": train}
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
        source = open_source(settings.data.path, val_fraction=settings.data.val_fraction)
        with new_folder(folder, processes):
            if processes.first:
                write_whole(folder / CALL, json.dumps(call, indent=2) + "\n")
                write_whole(folder / SETTINGS, layers.to_yaml(settings))
            loop = prepare(settings, source, folder, display, processes, begin=True)
            if loop.stopped_at_probe:
                display.say("stopped at the probe, which is the model now")
                return conclude(loop, source)
            return finish(loop, source)


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
    source = open_source(where, val_fraction=unchecked.data.val_fraction)
    told = recipe is not None or from_file  # then it says what is to be done, and nothing is fitted
    start = asked.get("model", {}).get("weights") or (None if told else within_reach(source, asked, display))
    if start in (None, SCRATCH):
        known = layers.read_recipe(recipe or layers.default_recipe(where)) if recipe or not from_file else {}
        settings, images = layers.build([facts(source), known, written, said]), None
    else:
        settings, images = fine_tuning(start, source, recipe=recipe, fitted=not told, said=asked, display=display)
    if settings.data.val_fraction != unchecked.data.val_fraction:  # the recipe's, which a resumed run takes as well
        source = open_source(where, val_fraction=settings.data.val_fraction)
    settings = resolved(settings, source, images)
    if settings.model.num_classes != len(source.classes):
        raise ValueError(
            f"model.num_classes {settings.model.num_classes} does not fit {source.name}, "
            f"which has {len(source.classes)} classes; leave the setting out"
        )
    check_model(settings.model)  # what can't be built says so before the images are read
    check_sizes(settings)
    for line in unused(settings, said=said, multi_label=source.multi_label):
        display.say(f"note: {line}")
    return settings


# --------------------------------------------------------------------------------------------------------------------
# Settings


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
    start: str, source: Source, *, recipe: str | None, fitted: bool, said: Mapping[str, Any], display: Display
) -> tuple[Settings, Preprocessing]:
    """The settings to fine-tune weights with: the recipe's, or those fitted to the facts, below what was said.

    The model's shape is the weights'. Also gives what the weights say of their images.
    """
    name = said.get("model", {}).get("name")
    named = parse_name(name) if name else {}  # what the name says of the shape is compared with the weights below
    fields = {key: value for key, value in layers.model_fields(said).items() if key != "weights" and named.get(key) != value}
    model = load_weights(start, **{"num_classes": len(source.classes), "in_channels": source.channels, **fields})
    shape = dataclasses.asdict(model.config)
    if not isinstance(model, Baseline):
        shape["name"] = name_of(model.config)
    if name and (isinstance(model, Baseline) or is_baseline(name)) and name != shape["name"]:
        raise ValueError(f'model.name "{name}" is not what the weights {start} are of, {shape["name"]}; leave --model out')
    for key, value in named.items():
        if not (key in fields or key == "img_size") and pair_or(shape[key]) != pair_or(value):
            raise ValueError(
                f'model.name "{name}" has {key} {value}, and the weights {start} have {shape[key]}; leave --model out'
            )
    below = layers.read_recipe(recipe or "finetune")
    if "name" in below.get("model", {}):
        raise ValueError(
            f'recipe "{recipe}" has a model of its own, and the weights {start} have theirs; use --recipe finetune'
        )
    stack = [{"model": shape}, below]
    if isinstance(model, Baseline):
        stack.append({} if recipe else {"optim": {"layer_decay": 1.0}})  # nobody asked for the recipe's
    elif fitted:
        stack.append(fit(model, source, nameless(said), display))
    if model.classes == source.classes:
        display.say(
            "the weights know these classes: their head is where training starts (train.probe_head true takes the probe)"
        )
        stack.append({"train": {"probe_head": False}})
    assert model.preprocessing is not None
    return layers.build([*stack, nameless(said)]), model.preprocessing


def fit(model: ViT, source: Source, said: Mapping[str, Any], display: Display) -> dict[str, Any]:
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


def resume(folder: str | Path, *, console: Console | None = None) -> Run:
    """Goes on with a run from its newest checkpoint. Raises ValueError where it is finished, or holds no checkpoint."""
    settings = settings_of(Path(folder))
    with world(own_device(pick_device(settings.train.device))) as processes:
        return _resume(Path(folder), processes, Display(console if processes.first else Console(quiet=True)))


def _resume(folder: Path, processes: World, display: Display) -> Run:
    """`resume`, in the processes of a run."""
    path, state, damaged = processes.on_first(lambda: found(folder))
    for line in damaged:
        display.say(f"passed over: {line}")
    settings = settings_of(folder)
    source = open_source(settings.data.path, val_fraction=settings.data.val_fraction)
    if processes.first:  # before the loop opens the file, or it would write into the old one
        truncate_metrics(folder, step=state["step"], evaluated=state["evaluated"])
    processes.barrier()
    loop = prepare(settings, source, folder, display, processes, begin=False)
    loop.restore(path, state)
    display.say(f"going on at step {loop.step:,}")
    return finish(loop, source)


def found(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint that a run goes on from, as `checkpoint.newest` gives it. Raises ValueError where it does not go on."""
    if (folder / "evaluation.json").exists():
        raise ValueError(
            f'run "{folder}" is finished; `vitrail evaluate {folder}` scores it, `vitrail train --out` starts another'
        )
    if (folder / "model.safetensors").exists() and not checkpoint.complete(folder / "checkpoints"):
        raise ValueError(f'run "{folder}" stopped at the probe, and is not scored yet; `vitrail evaluate {folder}` scores it')
    path, state, damaged = checkpoint.newest(folder / "checkpoints")
    if state["settings"] != sha256(folder / SETTINGS):
        file = folder / SETTINGS
        raise ValueError(
            f"{file} was changed since the checkpoint; put it back, or begin anew: `vitrail train --config {file}`"
        )
    return path, state, damaged


def settings_of(folder: Path) -> Settings:
    """The settings that a run was begun with. Raises ValueError for a folder that is none."""
    if not (folder / SETTINGS).exists():
        raise ValueError(f'"{folder}" holds no {SETTINGS}, so it is no run folder; `vitrail train` makes one')
    return layers.from_yaml((folder / SETTINGS).read_text(encoding="utf-8"))


def goes_on(folder: Path, call: Mapping[str, Any]) -> bool:
    """Whether a call that may resume finds a run to go on with.

    Raises ValueError for a folder that is no run, and for a run that another call began.
    """
    if not folder.exists() or not ((folder / SETTINGS).exists() or others(folder)):  # killed as it began, or was cleared away
        return False
    settings_of(folder)
    begun = folder / CALL
    if not begun.exists() or json.loads(begun.read_text(encoding="utf-8")) != call:
        raise ValueError(f'run "{folder}" was begun by another command; say the same again, or choose another --out')
    return bool(checkpoint.complete(folder / "checkpoints")) or any((folder / name).exists() for name in OUTCOMES)


def clear(folder: Path) -> None:
    """Takes away what a run has left that came to no checkpoint: its first files, and drafts.

    Raises ValueError, and takes nothing, where anything else is there.
    """
    if not folder.exists():
        return
    if found := others(folder):
        raise ValueError(f'"{folder}" holds no checkpoint, but {min(found)} besides; take it away, or choose another --out')
    shutil.rmtree(folder)


def others(folder: Path) -> list[str]:
    """What is in a folder besides the first files of a run, and drafts."""
    own = BEGUN | {f"{name}.part" for name in BEGUN} | {"checkpoints", "tensorboard"}
    drafts = re.compile(r"step_\d+\.part")
    found = [path.name for path in folder.iterdir() if path.name not in own]
    return found + [path.name for path in folder.glob("checkpoints/*") if not drafts.fullmatch(path.name)]


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


def facts(source: Source) -> dict[str, Any]:
    """What the data says of the model, below everything that somebody says."""
    size = PHOTO_SIZE if source.img_size is None else source.img_size
    return {"model": {"img_size": size, "in_channels": source.channels, "num_classes": len(source.classes)}}


def prepare(
    settings: Settings, source: Source, folder: Path, display: Display, processes: World = ALONE, *, begin: bool
) -> Loop:
    """Everything a training is made of, at step 0; to `begin`, with the weights that it starts from, and the ladder."""
    cfg = settings.train
    device = own_device(pick_device(cfg.device))
    keep_freed_memory(not cfg.checkpointing)
    dtype = autocast_dtype(cfg.precision, device)
    images = preprocessing_for(source, settings)
    data = shared_by(settings.data, processes.neighbours)
    split, views, images_are = images_of(source, settings, images, data, processes)
    skipped = write_skipped(folder, split, *views.values()) if processes.first else 0

    torch.manual_seed(cfg.seed)
    model = model_for(settings.model, begin=begin).to(device)
    if model.receipt is not None:
        display.say(str(model.receipt))
    model.preprocessing, model.classes, model.multi_label = images, source.classes, source.multi_label
    model.checkpointing = cfg.checkpointing
    together = f" · {processes.size} processes" if processes.size > 1 else ""
    display.say(
        f"{source.name}: {len(split):,} training images, {len(source.classes)} classes · "
        f"{settings.model.weights or settings.model.name}: {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{images.img_size[0]}x{images.img_size[1]} px · "
        f"{device.type}, {cfg.precision}{together}"
    )
    if skipped:
        display.say(f"left out: {skipped:,} files that can't be read, named in {folder / 'skipped.txt'}")
    group_table(model, settings.optim)  # what can't be says so before the ladder
    objective = build_objective(
        settings,
        split=split,
        preprocessing=images,
        classes=source.classes,
        device=device,
        dtype=dtype,
        multi_label=source.multi_label,
    )
    stop = False
    if begin and settings.model.weights not in (None, SCRATCH) and cfg.ladder and not source.multi_label:
        known = {**views, "train": source.load("train", preprocessing=images, cfg=data)}
        stop = climb_first(model, known, cfg, folder, display, processes, device=device, dtype=dtype)
    mean = copy.deepcopy(model) if cfg.ema_decay else None
    if cfg.compile:  # blocks before they are in parts, as torch has it
        # all blocks share one list of graphs: learning, frozen or scored, at one size or any; the default of 8 is too short
        torch.compiler.config.recompile_limit = 32
        for part in model.blocks if isinstance(model, ViT) else [model]:
            part.compile()
    if cfg.shard and processes.size == 1 and not begin:
        display.say("train.shard: this one process has all of every weight")
    elif cfg.shard:
        for one in [model] if mean is None else [model, mean]:
            shard(one, processes, device=device, dtype=dtype)
    optimizers = build_optimizers(model, settings.optim, batch_size=cfg.batch_size)
    score = None
    if len(views.get("val", ())):
        score = functools.partial(score_model, split=views["val"], device=device, dtype=dtype, processes=processes)
    return Loop(
        settings=settings,
        folder=folder,
        split=split,
        views=views,
        preprocessing=images,
        device=device,
        move=Step(
            model,
            optimizers,
            objective,
            autocast_dtype=dtype,
            clip_norm=settings.optim.clip_norm,
            accumulate=cfg.accumulate,
            scaler=loss_scaler(device, dtype),
            world=processes,
        ),
        ema=None if mean is None else Ema(model, mean, cfg.ema_decay),
        pace=pace_for(settings, split),
        evaluate=score,
        metrics=Metrics(folder) if processes.first else None,
        display=display,
        world=processes,
        stopped_at_probe=stop,
        images_are=images_are,
    )


def images_of(
    source: Source, settings: Settings, images: Preprocessing, data: DataConfig, processes: World
) -> tuple[Split, dict[str, Split], str]:
    """The training images, the evaluation views of the others, and a hash of the names of all in their order.

    Raises ValueError where there is nothing to train on, and where the processes do not see the same images.
    """
    split = source.load("train", preprocessing=images, cfg=data, augment=settings.augment)
    if not len(split):
        raise ValueError(f"{source.name} has no training images; lower data.val_fraction {settings.data.val_fraction}")
    others: list[SplitName] = [name for name in source.splits if name != "train"]
    views: dict[str, Split] = {name: source.load(name, preprocessing=images, cfg=data) for name in others}
    names = "\0".join(chain(split.names, *(view.names for view in views.values())))
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    if len(set(processes.gather(digest))) > 1:
        raise ValueError(f"the processes do not read the same images of {source.name}; let all machines see the same files")
    return split, views, digest


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
    model: ViT | Baseline,
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
        write_whole(folder / "ladder.json", json.dumps(rungs.to_dict(), indent=2) + "\n")
    stop = cfg.stop_early and not rungs.advice.finetune
    if stop or (cfg.probe_head and has_linear_head(model)):
        apply_probe(model, rungs.probe)
    elif cfg.probe_head:
        display.say("the head is not one linear layer, so it can't start as the probe; it starts from random weights")
    return stop


def conclude(loop: Loop, source: Source) -> Run:
    """Saves the model and scores it."""
    model, processes = loop.trained.eval(), loop.world
    processes.same_buffers(model)
    complete = put_together(model, loop.settings.model)  # by all processes
    if processes.first:
        save_model(complete, loop.folder, data=loop.settings.data.path)
    which = next((name for name in ("test", "val") if len(loop.views.get(name, ()))), "train")
    split = loop.views.get(which) or source.load("train", preprocessing=loop.preprocessing, cfg=loop.settings.data)
    with Interrupt() as interrupt:

        def watch() -> None:
            if asked := processes.greatest(interrupt.number)[0]:
                way = "`vitrail evaluate`" if loop.stopped_at_probe else "`vitrail resume`"
                raise Interrupted(f"the model is trained and saved; {way} {loop.folder} scores it", number=int(asked))

        scores = score_model(model, watch, split=split, device=loop.device, dtype=loop.move.autocast_dtype, processes=processes)
    name, value, (low, high) = scores.headline
    for lost in processes.gather([split.skipped for split in (loop.split, *loop.views.values())]):
        loop.split.record([item for part in lost for item in part])
    if processes.first:
        write_skipped(loop.folder, loop.split, *loop.views.values())
        save_evaluation(scores, loop.folder, data=source.name, split=which)
    loop.display.say(
        f"{which} {name} {value:.2%} (95 % interval {low:.2%} to {high:.2%}) on {scores.count:,} images, "
        f"after {loop.step:,} steps in {duration(loop.pace.elapsed)}"
    )
    processes.barrier()  # nobody leaves while the first still writes
    return Run(folder=loop.folder, evaluation=scores, split=which, seconds=loop.pace.elapsed, steps=loop.step)


def put_together(model: ViT | Baseline, cfg: ModelConfig) -> ViT | Baseline:
    """The model with whole weights, where every process has only its part of them."""
    if not is_sharded(model):
        return model
    state = {name: whole(value).cpu() for name, value in model.state_dict().items()}
    complete = build_model(cfg)
    complete.load_state_dict(state)
    complete.preprocessing, complete.classes, complete.multi_label = model.preprocessing, model.classes, model.multi_label
    return complete.eval()


def model_for(cfg: ModelConfig, *, begin: bool) -> ViT | Baseline:
    """The model to train; to `begin`, with the weights that it starts from."""
    if not begin or cfg.weights in (None, SCRATCH):
        return build_model(cfg)
    return load_weights(str(cfg.weights), **(baseline_fields(cfg) if is_baseline(cfg.name) else shallow(cfg.vit())))


def score_model(
    model: ViT | Baseline,
    watch: Callable[[], None],
    *,
    split: Split,
    device: torch.device,
    dtype: torch.dtype | None,
    processes: World = ALONE,
) -> Evaluation | MultiLabelEvaluation:
    """The model's scores on a split, of which each process sees its part; `watch` is called between two batches."""
    assert model.preprocessing is not None
    processes.same_buffers(model)
    judge = evaluate_labels if split.multi_label else evaluate
    return judge(
        model,
        split,
        preprocessing=model.preprocessing,
        classes=model.classes,
        device=device,
        autocast_dtype=dtype,
        among=Among(Part(processes.rank, processes.size), gather=processes.gather, watch=watch),
    )


def preprocessing_for(source: Source, settings: Settings, given: Preprocessing | None = None) -> Preprocessing:
    """What happens to images before the model: as the settings say, else the weights (`given`), else the data set."""
    cfg, data = settings.model, settings.data
    own = 0.875 if source.img_size is None else 1.0  # small images are all subject, photographs have margins
    known = given or Preprocessing(
        img_size=pair(cfg.img_size), in_channels=source.channels, mean=source.mean, std=source.std, crop_pct=own
    )
    mean, std = (in_channels_of(values, cfg.in_channels) for values in (data.mean or known.mean, data.std or known.std))
    if len(mean) != cfg.in_channels or len(std) != cfg.in_channels or cfg.in_channels not in (1, 3):
        raise ValueError(
            f"model.in_channels {cfg.in_channels} does not fit {source.name}, whose images have {source.channels}; use 1 or 3"
        )
    return Preprocessing(
        img_size=pair(cfg.img_size),
        in_channels=cfg.in_channels,
        mean=mean,
        std=std,
        crop_pct=data.crop_pct or known.crop_pct,
        crop_mode=data.crop_mode or known.crop_mode,
        interpolation=data.interpolation or known.interpolation,
    )


def in_channels_of(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or deviations of RGB for grey images, and of grey ones for RGB."""
    if channels == 1:
        return (sum(values) / len(values),)
    return values * channels if len(values) == 1 else values


def shallow(config: ViTConfig) -> dict[str, Any]:
    """The fields of a config, by name."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def pace_for(settings: Settings, split: Split) -> Pace:
    """The run's length in steps, or in seconds to which the steps are fitted."""
    cfg = settings.train
    if cfg.minutes is not None:
        return Pace(None, seconds=60 * cfg.minutes)
    if cfg.steps is not None:
        return Pace(cfg.steps)
    epochs = DEFAULT_EPOCHS if cfg.epochs is None else cfg.epochs
    return Pace(max(1, round(epochs * steps_per_epoch(split, batch_size=cfg.batch_size))))


def free_folder(out: str | Path | None, data: str) -> Path:
    """Where the run goes: `out`, or the next free folder under runs/. Raises ValueError for one that exists."""
    if out is not None:
        if Path(out).exists():
            raise ValueError(f'run folder "{out}" exists and is never overwritten; choose another --out, or resume it')
        return Path(out)
    name, number = Path(data).resolve().name or "run", 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")


@contextlib.contextmanager
def new_folder(folder: Path, processes: World = ALONE) -> Iterator[None]:
    """Makes the run's folder; it goes again if training fails before anything of worth came into it."""
    processes.on_first(lambda: folder.mkdir(parents=True))
    try:
        yield
    except BaseException:
        if processes.first and not any(
            (folder / name).exists() for name in ("checkpoints", "model.safetensors", "bad_batch.txt")
        ):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def write_skipped(folder: Path, *splits: Split) -> int:
    """skipped.txt: each file that was left out, and why; no file where none was. Returns how many there are."""
    items = {item.path: item.reason for split in splits for item in split.skipped}
    if items:
        write_whole(folder / "skipped.txt", "".join(f"{path}\t{reason}\n" for path, reason in sorted(items.items())))
    return len(items)


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be no UTF-8
    os.replace(draft, path)

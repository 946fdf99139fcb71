"""From settings to a run folder: `train` starts a run, `resume` goes on with one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vitrail.config import ModelConfig, Preprocessing, Settings, pair
from vitrail.data.batches import steps_per_epoch
from vitrail.data.dataset import Source, Split, SplitName
from vitrail.data.sources import NAMES, open_source
from vitrail.evaluate import Evaluation, evaluate, save_evaluation
from vitrail.models import ViT
from vitrail.models.device import autocast_dtype, keep_freed_memory, pick_device
from vitrail.train import checkpoint
from vitrail.train import settings as layers
from vitrail.train.loop import Loop
from vitrail.train.optim import build_optimizers
from vitrail.train.pace import Pace
from vitrail.train.progress import Display, Metrics, duration, truncate_metrics
from vitrail.train.step import Ema, Step
from vitrail.weights import save_model
from vitrail.weights.run_folder import SETTINGS, sha256

DEFAULT_EPOCHS = 100.0
PHOTO_SIZE = 224
"""Side in pixels for photographs, where no setting says another."""


@dataclass(frozen=True)
class Run:
    """A finished training."""

    folder: Path
    evaluation: Evaluation
    """On the test images; on the validation images where the set has no test split (`split` says which)."""
    split: str
    seconds: float
    """Of training, without loading and the last evaluation."""
    steps: int


def train(
    path: str | Path | None = None,
    *,
    recipe: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    minutes: float | None = None,
    model: str | Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    """Trains on a named set or a folder, evaluates, and writes the run folder.

    Without `path`, on the sample that comes with the package. Without `recipe`, with the one for that set. The sections
    are mappings of single settings, `optim={"lr": 1e-3}`, and `model` may be a name. `out` is a folder that does not
    exist yet; without it, the next free one under runs/. Raises ValueError, in one line, for what can't be.
    """
    sections = {"model": model, "data": data, "augment": augment, "optim": optim, "train": train}
    said: dict[str, Any] = {name: section for name, section in sections.items() if section is not None}
    if minutes is not None:
        said["train"] = {**(train or {}), "minutes": minutes}
    if path is not None:
        said = layers.merge(said, {"data": {"path": str(path)}})
    written = {} if config is None else layers.read_config(config)
    where = layers.merge(written, said).get("data", {}).get("path", "fashion-sample")
    below = layers.read_recipe(recipe or layers.default_recipe(where)) if recipe or config is None else {}
    stack = [below, written, said]

    unchecked = layers.build(stack)
    folder = free_folder(out, where)
    source = open_source(where, val_fraction=unchecked.data.val_fraction)
    settings = resolved(layers.build([facts(source), *stack]))
    if settings.model.num_classes != len(source.classes):
        raise ValueError(
            f"model.num_classes {settings.model.num_classes} does not fit {source.name}, "
            f"which has {len(source.classes)} classes; leave the setting out"
        )
    with torch.device("meta"):
        ViT(settings.model.vit())  # what can't be built says so before the images are read
    with new_folder(folder):
        (folder / SETTINGS).write_text(layers.to_yaml(settings), encoding="utf-8")
        return finish(prepare(settings, source, folder, console), source)


def resume(folder: str | Path, *, console: Console | None = None) -> Run:
    """Goes on with a run from its newest checkpoint. Raises ValueError where it is finished, or holds no checkpoint."""
    folder = Path(folder)
    if not (folder / SETTINGS).exists():
        raise ValueError(f'"{folder}" holds no {SETTINGS}, so it is no run folder; `vitrail train` makes one')
    if (folder / "evaluation.json").exists():
        raise ValueError(
            f'run "{folder}" is finished; `vitrail evaluate {folder}` scores it, `vitrail train --out` starts another'
        )
    settings = layers.from_yaml((folder / SETTINGS).read_text(encoding="utf-8"))
    source = open_source(settings.data.path, val_fraction=settings.data.val_fraction)
    _, state = checkpoint.newest(folder / "checkpoints")
    if state["settings"] != sha256(folder / SETTINGS):
        file = folder / SETTINGS
        raise ValueError(
            f"{file} was changed since the checkpoint; put it back, or begin anew: `vitrail train --config {file}`"
        )
    truncate_metrics(folder, step=state["step"])  # before the loop opens the file, or it would write into the old one
    loop = prepare(settings, source, folder, console)
    loop.restore()
    loop.display.say(f"going on at step {loop.step:,}")
    return finish(loop, source)


def resolved(settings: Settings) -> Settings:
    """The settings with nothing left to find out: a run goes on, and is scored, as it began, wherever it is."""
    dtype = autocast_dtype(settings.train.precision, pick_device(settings.train.device))
    path = settings.data.path if settings.data.path in NAMES else str(Path(settings.data.path).resolve())
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, path=path),
        train=dataclasses.replace(settings.train, precision="bf16" if dtype else "fp32"),
    )


def facts(source: Source) -> dict[str, Any]:
    """What the data says of the model, below everything that somebody says."""
    size = PHOTO_SIZE if source.img_size is None else source.img_size
    return {"model": {"img_size": size, "in_channels": source.channels, "num_classes": len(source.classes)}}


def prepare(settings: Settings, source: Source, folder: Path, console: Console | None) -> Loop:
    """Everything a training is made of, at step 0."""
    cfg = settings.train
    device = pick_device(cfg.device)
    keep_freed_memory()
    dtype = autocast_dtype(cfg.precision, device)
    display = Display(console)
    images = preprocessing_for(source, settings.model)
    split = source.load("train", preprocessing=images, cfg=settings.data, augment=settings.augment)
    if not len(split):
        raise ValueError(f"{source.name} has no training images; lower data.val_fraction {settings.data.val_fraction}")
    others: list[SplitName] = [name for name in source.splits if name != "train"]
    views: dict[str, Split] = {name: source.load(name, preprocessing=images, cfg=settings.data) for name in others}
    skipped = write_skipped(folder, split, *views.values())

    torch.manual_seed(cfg.seed)
    model = ViT(settings.model.vit()).to(device)
    model.preprocessing, model.classes = images, source.classes
    model.checkpointing = cfg.checkpointing
    ema = Ema(model, copy.deepcopy(model), cfg.ema_decay) if cfg.ema_decay else None
    if cfg.compile:
        for block in model.blocks:
            block.compile()
    optimizers = build_optimizers(model, settings.optim, batch_size=cfg.batch_size)
    score = None
    if len(views.get("val", ())):
        score = functools.partial(score_model, split=views["val"], device=device, dtype=dtype)
    parameters = sum(p.numel() for p in model.parameters())
    display.say(
        f"{source.name}: {len(split):,} training images, {len(source.classes)} classes · "
        f"{settings.model.name}: {parameters:,} parameters, {images.img_size[0]}x{images.img_size[1]} px · "
        f"{device.type}, {'bf16' if dtype else 'fp32'}"
    )
    if skipped:
        display.say(f"left out: {skipped:,} files that can't be read, named in {folder / 'skipped.txt'}")
    return Loop(
        settings=settings,
        folder=folder,
        split=split,
        views=views,
        preprocessing=images,
        device=device,
        move=Step(model, optimizers, autocast_dtype=dtype, clip_norm=settings.optim.clip_norm),
        ema=ema,
        pace=pace_for(settings, split),
        evaluate=score,
        metrics=Metrics(folder),
        display=display,
    )


def finish(loop: Loop, source: Source) -> Run:
    """Trains to the end, saves the model and scores it."""
    loop.display.say(f"run folder {loop.folder}")
    try:
        loop.run()
    finally:
        loop.metrics.close()
    model = loop.trained.eval()
    save_model(model, loop.folder, data=loop.settings.data.path)
    which = next((name for name in ("test", "val") if len(loop.views.get(name, ()))), "train")
    split = loop.views.get(which) or source.load("train", preprocessing=loop.preprocessing, cfg=loop.settings.data)
    scores = score_model(model, split=split, device=loop.device, dtype=loop.move.autocast_dtype)
    write_skipped(loop.folder, loop.split, *loop.views.values())
    save_evaluation(scores, loop.folder, data=source.name, split=which)
    low, high = scores.top1_interval
    loop.display.say(
        f"{which} accuracy {scores.top1:.2%} (95 % interval {low:.2%} to {high:.2%}) on {scores.count:,} images, "
        f"after {loop.step:,} steps in {duration(loop.pace.elapsed)}"
    )
    return Run(folder=loop.folder, evaluation=scores, split=which, seconds=loop.pace.elapsed, steps=loop.step)


def score_model(model: ViT, *, split: Split, device: torch.device, dtype: torch.dtype | None) -> Evaluation:
    """The model's scores on a split."""
    assert model.preprocessing is not None
    return evaluate(model, split, preprocessing=model.preprocessing, classes=model.classes, device=device, autocast_dtype=dtype)


def preprocessing_for(source: Source, cfg: ModelConfig) -> Preprocessing:
    """What happens to this set's images before this model."""
    mean, std = source.mean, source.std
    if cfg.in_channels == 1 and len(mean) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    if cfg.in_channels == 3 and len(mean) == 1:
        mean, std = mean * 3, std * 3
    if len(mean) != cfg.in_channels:
        raise ValueError(
            f"model.in_channels {cfg.in_channels} does not fit {source.name}, whose images have {source.channels}; use 1 or 3"
        )
    crop_pct = 0.875 if source.img_size is None else 1.0  # small images are all subject, photographs have margins
    return Preprocessing(img_size=pair(cfg.img_size), in_channels=cfg.in_channels, mean=mean, std=std, crop_pct=crop_pct)


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
def new_folder(folder: Path) -> Iterator[None]:
    """Makes the run's folder; it goes again if training fails before anything of worth came into it."""
    folder.mkdir(parents=True)
    try:
        yield
    except BaseException:
        if not any((folder / name).exists() for name in ("checkpoints", "model.safetensors", "bad_batch.txt")):
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

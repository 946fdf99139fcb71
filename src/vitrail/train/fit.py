"""Fit of a run of minutes to this machine: a measured pace, and a smaller model of the recipe where it is too slow."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vitrail.data.batch import Batch
from vitrail.data.batches import Part, train_batches
from vitrail.models import meta_model
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair, Settings, TrainConfig, pair
from vitrail.tasks import Task
from vitrail.train.assemble import Context, Images, build_start_model, build_step, build_task, keep_memory, open_images
from vitrail.train.distributed import SINGLE_PROCESS
from vitrail.train.optim import Optimizers, build_optimizers
from vitrail.train.plan import resolve_preprocessing
from vitrail.train.sizes import side_unit, size_at
from vitrail.train.step import Step

FEW_IMAGES = 8
"""Images of the first measured steps, which warm up; on a slow machine there are no others."""
LIMIT_SHARES, LIMITS_S = (0.02, 0.1), (1.0, 10.0)
"""Limit of the measured steps of one model: 2 % of the run, at least 1 s unless that is more than 10 %, and at most 10 s."""
STEPS = 3
"""Greatest number of measured steps on a full batch."""


@dataclass(frozen=True)
class Trial:
    """Measured pace of a model."""

    settings: Settings
    step_s: float
    """Seconds of a training step, of the slowest process."""

    @property
    def images_per_s(self) -> float:
        """Images per second, over all processes."""
        return self.settings.train.batch_size / self.step_s

    def epochs(self, images: int) -> float:
        """Return the number of passes over the training images in the minutes of the run."""
        assert self.settings.train.minutes is not None
        return self.images_per_s * 60 * self.settings.train.minutes / images

    def minutes(self, images: int) -> float:
        """Return the minutes that `train.min_epochs` passes take."""
        return self.settings.train.min_epochs * images / self.images_per_s / 60


def fit_to_machine(context: Context, images: Images) -> tuple[Context, Images]:
    """Measure the pace of a run of minutes; take the first smaller model that sees the images `train.min_epochs` times.

    Return the context with the settings of the chosen model and the seconds spent, and its images. If no model is fast enough,
    the fastest is chosen, and the line printed tells how many minutes are needed. The slowest of several processes counts. The
    random state stays as it is. Nothing is measured for a length in epochs or steps, sharded models, `train.min_epochs` 0, and
    tasks that need preparation.
    """
    cfg, processes, count = context.settings.train, context.processes, len(images.train)
    if cfg.minutes is None or not cfg.min_epochs or context.sharded:
        return context, images
    start, trials = time.perf_counter(), list[Trial]()
    with keep_random_state(context.device):
        for settings in (context.settings, *context.plan.smaller):
            plan = dataclasses.replace(context.plan, settings=settings)
            step_s = processes.max(measure_step(dataclasses.replace(context, plan=plan), images))[0]
            if not step_s:
                return context, images
            trials.append(Trial(settings, step_s))
            if trials[-1].epochs(count) >= cfg.min_epochs:
                break
    chosen = max(trials, key=lambda trial: min(trial.epochs(count), cfg.min_epochs))
    if line := describe_fit(trials, chosen, images=count):
        context.display.say(line)
    plan = dataclasses.replace(context.plan, settings=chosen.settings, smaller=())
    measured = dataclasses.replace(context, plan=plan, measured_s=processes.max(time.perf_counter() - start)[0])
    if resolve_preprocessing(context.source, chosen.settings) != images.preprocessing:
        images = open_images(measured)
    return measured, images


# --------------------------------------------------------------------------------------------------------------------
# The line about the choice


def describe_fit(trials: Sequence[Trial], chosen: Trial, *, images: int) -> str:
    """Return the line about a slow machine or a smaller model; "" if the first model is fast enough."""
    first, least = trials[0], trials[0].settings.train.min_epochs
    if first.epochs(images) >= least:
        return ""
    pace = f"this machine trains {rounded(first.images_per_s)} images/s: {describe_size(first.settings)}"
    seen = f"{pace} sees each image about {rounded(first.epochs(images))} times in {minutes_text(first)}"
    words = [f"note: {seen}"]
    if chosen is not first:
        enough = chosen.epochs(images) >= least  # then the measurement ended early, and there may be more
        times = f"at least {least:g} times" if enough else f"about {rounded(chosen.epochs(images))} times"
        taken = f"{describe_size(chosen.settings)}, which sees it {times}"
        words = [f"{seen.replace(' sees ', ' would see ')}; taken instead: {taken} (train.smaller false keeps the larger one)"]
    if chosen.epochs(images) < least:
        needed = math.ceil(chosen.minutes(images))
        words.append(f"{least:g} times take about {needed:,} minutes (--minutes {needed})")
    return "; ".join(words)


def describe_size(settings: Settings) -> str:
    """Return name, parameters and image size of a model: "Ti/16 (5.7 M parameters, 224 px)"."""
    model = settings.model
    parameters = sum(p.numel() for p in meta_model(model).parameters()) / 1e6
    height, width = pair(model.img_size)
    side = f"{height}" if height == width else f"{height}x{width}"
    return f"{model.name} ({parameters:.2g} M parameters, {side} px)"


def minutes_text(trial: Trial) -> str:
    """Return the minutes of a run: "3 minutes"."""
    minutes = trial.settings.train.minutes
    return f"{minutes:g} minute{'s' * (minutes != 1)}"


def rounded(value: float) -> str:
    """Format a number with two digits, or as a whole number from 10 on."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


# --------------------------------------------------------------------------------------------------------------------
# Measured steps


@contextlib.contextmanager
def keep_random_state(device: torch.device) -> Iterator[None]:
    """Restore the state of torch's random generators at the end."""
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    with torch.random.fork_rng(devices=[index] if device.type == "cuda" else []):
        yield


def measure_step(context: Context, images: Images) -> float:
    """Return the seconds of a training step on this process's part of a batch, of a model that is then dropped.

    Images are decoded in this process, for a smaller model in the size of the first. 0 for a task that needs preparation, and
    for a batch of unreadable files.
    """
    settings, cfg = context.settings, context.settings.train
    preprocessing = resolve_preprocessing(context.source, settings)
    keep_memory(cfg)
    model = build_start_model(context, preprocessing)
    task = build_task(context, model, dataclasses.replace(images, preprocessing=preprocessing))
    if task.preparation(len(images.train)):
        return 0.0
    optimizers = build_optimizers(model, settings.optim, batch_size=cfg.batch_size, companions=task.companions())
    optimizers.set_lr(0.0)
    step = dataclasses.replace(build_step(context, task.train(), optimizers), world=SINGLE_PROCESS)
    batch, batch_s = first_batch(context, images, task, middle_size(cfg, model))
    if batch is None:
        return 0.0
    run_s = 60 * (cfg.minutes or 0)
    enough_s = cfg.batch_size * run_s / (cfg.min_epochs * len(images.train))
    return batch_s + time_steps(step, batch, enough_s=enough_s - batch_s, limit_s=time_limit(run_s))


def time_limit(run_s: float) -> float:
    """Return the seconds that the measured steps of one model may take in a run of `run_s` seconds."""
    share, greatest = (share * run_s for share in LIMIT_SHARES)
    least_s, most_s = LIMITS_S
    return min(max(share, min(least_s, greatest)), most_s)


def first_batch(context: Context, images: Images, task: Task, size: Pair) -> tuple[Batch | None, float]:
    """Return the first batch of the run, augmented, and the seconds of a batch, of which loader processes share the decoding.

    None if no image of it can be read. A smaller model gets the images of the first one shrunk, as decoding would.
    """
    settings, start = context.settings, time.perf_counter()
    _, raw = next(
        train_batches(
            images.train,
            batch_size=settings.train.batch_size,
            seed=settings.train.seed,
            augment=context.task.reading(settings, images.preprocessing)[0],
            balanced=settings.data.balance == "sampler",
            part=Part(context.processes.rank, context.processes.size),
            in_process=True,
        )
    )
    read_s = (time.perf_counter() - start) / max(1, images.train.workers)
    if not len(raw):
        return None, read_s
    factor = max(task.preprocessing.img_size) / max(images.preprocessing.img_size)
    raw = (raw if factor >= 1 else raw.shrunk(factor)).pixels_to(context.device)
    task.batch(raw, epoch=0, img_size=size)  # the first one warms up
    start = time.perf_counter()
    batch = task.batch(raw, epoch=0, img_size=size)
    return batch, read_s + time.perf_counter() - start


def middle_size(cfg: TrainConfig, model: Backbone) -> Pair:
    """Return (height, width) of the images in the middle of the run."""
    full = pair(model.config.img_size)
    if cfg.start_size is None:
        return full
    unit = side_unit(cfg.patch_sizes, model)
    return size_at(0.5, start=cfg.start_size, stages=cfg.size_stages, full_from=cfg.full_size_from, full=full, patch=unit)


def time_steps(step: Step, batch: Batch, *, enough_s: float, limit_s: float) -> float:
    """Return the seconds of a step on the batch: the median of some steps, or the shorter of two on a few images, scaled.

    A step of at most `enough_s` ends the measurement, and so does one that would take longer than what is left of `limit_s`.
    """
    updates, count, start = UpdateClock(step.optimizers), len(batch), time.perf_counter()
    few = min(FEW_IMAGES, count)
    scaled, full = list[float](), list[float]()
    for images in (few, few, *[count] * STEPS):
        left_s = limit_s - (time.perf_counter() - start)
        if scaled and min(scaled) * images / count > left_s:
            break
        updates.seconds, since = 0.0, time.perf_counter()
        step(batch.rows(slice(images)))["loss"].item()  # which waits for the device
        scaled.append(scale_step(time.perf_counter() - since, updates.seconds, images=images, to=count))
        if scaled[-1] <= enough_s:
            return scaled[-1]
        if images == count:
            full.append(scaled[-1])
    return statistics.median(full) if full else min(scaled)


def scale_step(seconds: float, update_s: float, *, images: int, to: int) -> float:
    """Scale the seconds of a step on `images` to another number of them; `update_s`, the optimizer's share, stays."""
    return update_s + (seconds - update_s) * to / images


class UpdateClock:
    """Clock of the optimizers' updates, which cost the same for any number of images; on a GPU, of their start alone."""

    def __init__(self, optimizers: Optimizers) -> None:
        self.seconds = 0.0
        for part in optimizers.parts:
            part.register_step_pre_hook(self._start)
            part.register_step_post_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self.seconds -= time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self.seconds += time.perf_counter()

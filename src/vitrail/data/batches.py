"""Splits -> batches of raw pixels: the order of every epoch, the crop of every image, and the loader processes."""

# N images · B batch · K classes

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.data.augment import crop_boxes
from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split
from vitrail.data.draws import Draws, endless, permutation
from vitrail.data.quiet import ignore_pillow_warnings
from vitrail.settings import AugmentConfig

R = TypeVar("R")


@dataclass(frozen=True)
class Part:
    """One of several shares of the same batches, each read by another process."""

    index: int
    count: int

    def of(self, rows: int) -> slice:
        """The rows of a batch that are its own; the shares differ by one row at most."""
        return slice(self.index * rows // self.count, (self.index + 1) * rows // self.count)


WHOLE = Part(0, 1)


class Job(NamedTuple):
    """One batch that is to be read."""

    epoch: int
    indexes: Int64[Tensor, " B"]
    turns: Int64[Tensor, " B"] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """To a loader process by value, for tensors go through shared memory: of that the batches need all there is."""
        return _job, (self.epoch, self.indexes.numpy(), None if self.turns is None else self.turns.numpy())


def _job(epoch: int, indexes: np.ndarray, turns: np.ndarray | None) -> Job:
    return Job(epoch, torch.from_numpy(indexes), None if turns is None else torch.from_numpy(turns))


@dataclass(frozen=True)
class _Reader(Dataset[tuple[int, RawBatch, tuple[Skipped, ...]]]):
    """Reads jobs, in whichever process it stands."""

    split: Split
    seed: int = 0
    augment: AugmentConfig | None = None
    """None reads whole images."""

    def __getitem__(self, job: Job) -> tuple[int, RawBatch, tuple[Skipped, ...]]:
        boxes = None
        if self.augment is not None:
            draws = Draws(seed=self.seed, epoch=job.epoch, indexes=job.indexes, turns=job.turns)
            boxes = crop_boxes(self.split.sizes[job.indexes], draws, self.augment)
        batch, failures = self.split.read(job.indexes, boxes=boxes)
        turns = None if job.turns is None else job.turns[torch.isin(job.indexes, batch.indexes)]
        return job.epoch, replace(batch, turns=turns, targets=self.split.targets(batch.indexes)), failures


def steps_per_epoch(split: Split, *, batch_size: int) -> int:
    """Training batches an epoch: whole ones only, but at least one."""
    return max(1, len(split) // batch_size)


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    augment: AugmentConfig,
    start_step: int = 0,
    balanced: bool = False,
    part: Part = WHOLE,
) -> Iterator[tuple[int, RawBatch]]:
    """Endless (epoch, batch), starting with the batch of step `start_step`.

    Every epoch has its own order; what is left over at its end is dropped, unless the set is smaller than one batch.
    Order and crops depend on (seed, epoch, index) alone, so a batch can be made again exactly. An image that can't
    be read any more is missing from its batch and listed in `split.skipped`. Raises ValueError once that is all of them.

    With `augment.repeats` above 1 each image stands that often in its batch (Hoffer et al. 2020), and an epoch of as many
    steps sees a part of the images, the next one another (as DeiT's: Touvron et al. 2021). With `balanced` an epoch draws
    every class equally often, give or take one, however many images it has.

    A batch none of whose images can be read is given as it is, empty: it has its step. With `part`, every batch is its own rows
    only. Raises ValueError for a batch with fewer images than parts.
    """
    if part.count > min(batch_size, len(split) * augment.repeats):
        few = min(batch_size, len(split) * augment.repeats)
        raise ValueError(f"a batch of {few} images can't be shared by {part.count} processes; use {few} at most")
    steps = steps_per_epoch(split, batch_size=batch_size)
    different = min(len(split), -(-batch_size // augment.repeats))  # images in a batch
    classes = _members(split.labels) if balanced else None

    def jobs() -> Iterator[Job]:
        epoch, step = divmod(start_step, steps)
        while True:
            order = _drawn(len(split), steps * different, classes, seed=seed, epoch=epoch).view(steps, different)
            # One turn of all images after the other: an image beside its own copy would be mixed with itself.
            order = order.repeat(1, augment.repeats)[:, :batch_size]  # (steps, B)
            again = balanced or augment.repeats > 1
            turns = _turns(order.flatten()).view_as(order) if again else None
            order, turns = order[:, part.of(order.shape[1])], None if turns is None else turns[:, part.of(order.shape[1])]
            for at in range(step, steps):
                yield Job(epoch, order[at], None if turns is None else turns[at])
            epoch, step = epoch + 1, 0

    return _read(_Reader(split, seed, augment), jobs(), keep_empty=True)


def _drawn(
    images: int, count: int, classes: Sequence[Int64[Tensor, " _n"]] | None, *, seed: int, epoch: int
) -> Int64[Tensor, " count"]:
    """The `count` images that an epoch sees, in its order.

    Without `classes`, as many epochs as one order has room for share it, part by part. With them, the epochs stand in one
    long row whose places fall to the classes in turn, and each class fills its own with all its images, again and again.
    """
    if classes is None:
        order, part = divmod(epoch, images // count)
        return permutation(images, seed=seed, epoch=order)[part * count : (part + 1) * count]
    parts = []
    for rank, members in enumerate(classes):
        start, stop = (-((rank - place) // len(classes)) for place in (epoch * count, (epoch + 1) * count))
        parts.append(endless(members, seed=seed, start=start, count=stop - start))
    return torch.cat(parts)[permutation(count, seed=seed, epoch=epoch)]


def _members(labels: Int64[Tensor, " N"]) -> tuple[Int64[Tensor, " _n"], ...]:
    """The images of each class that has some."""
    _, counts = labels.unique(return_counts=True)
    return labels.argsort(stable=True).split(counts.tolist())


def _turns(order: Int64[Tensor, " M"]) -> Int64[Tensor, " M"]:
    """How often each image stands further up in the order."""
    images, places = order.sort(stable=True)
    turns = torch.arange(len(order)) - torch.searchsorted(images, images)
    return torch.empty_like(order).scatter_(0, places, turns)


def class_weights(labels: Int64[Tensor, " N"], num_classes: int) -> Float[Tensor, " K"]:
    """N / (K · images of the class), so that all images of a class weigh as much as those of any other; 0 where it has none."""
    counts = torch.bincount(labels, minlength=num_classes)
    return torch.where(counts > 0, len(labels) / (num_classes * counts.clamp(min=1)), 0.0)


def eval_batches(split: Split, *, batch_size: int, part: Part = WHOLE) -> Iterator[RawBatch]:
    """Every image once, in order; the last batch may be short. Raises ValueError if no image can be read any more.

    With `part`, its own images only, and as many batches as every other part has: the last may be empty.
    """
    batches = -(-len(split) // (batch_size * part.count))
    own = torch.arange(len(split))[part.index :: part.count]
    jobs = (Job(0, own[at * batch_size : (at + 1) * batch_size]) for at in range(batches))
    return (batch for _, batch in _read(_Reader(split), jobs, keep_empty=part.count > 1))


def _read(reader: _Reader, jobs: Iterator[Job], *, keep_empty: bool = False) -> Iterator[tuple[int, RawBatch]]:
    """Reads the jobs in their order, in loader processes where the split asks for them."""
    loader: Iterator[tuple[int, RawBatch, tuple[Skipped, ...]]]
    if reader.split.workers:
        loader = iter(
            DataLoader(
                reader,
                sampler=jobs,
                batch_size=None,  # a job is a batch already
                num_workers=reader.split.workers,
                collate_fn=_shared,
                worker_init_fn=_begin_worker,
            )
        )
        DEATHS.take_over()
    else:
        loader = (reader[job] for job in jobs)
    lost_in_a_row = 0
    for epoch, batch, failures in _watched(loader):
        reader.split.record(failures)
        lost_in_a_row = 0 if len(batch) else lost_in_a_row + len(failures)
        if len(batch) or keep_empty:
            yield epoch, batch
        if lost_in_a_row and lost_in_a_row >= len(reader.split):  # a disk that went away, not a file
            raise ValueError(
                f"none of the {len(reader.split)} images can be read any more ({failures[0].path}: {failures[0].reason})"
            )


class Deaths:
    """Tells that a loader process died when the next batch is asked for, and not before.

    torch tells it by an error out of a signal's handler, at whatever the main thread is doing: half-way through a step, of
    which nothing could be saved, or in a checkpoint.
    """

    def __init__(self) -> None:
        self._tell: Callable[[int, FrameType | None], Any] = lambda number, frame: None
        self._asked = self._untold = False

    def take_over(self) -> None:
        """Takes the place of torch's handler, which the first loader sets, in the main thread only."""
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            now = signal.getsignal(signal.SIGCHLD)
            if callable(now) and now != self._hear:
                self._tell = now
                signal.signal(signal.SIGCHLD, self._hear)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Deaths raise RuntimeError in here, those of before as well."""
        self._asked = True
        try:
            if self._untold:
                self._untold = False
                self._tell(signal.SIGCHLD, None)
            yield
        finally:
            self._asked = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._tell(number, frame)
        else:
            self._untold = True


DEATHS = Deaths()


KILLED = "a loader process was killed, as happens where memory runs out; use fewer (data.workers, `vitrail resume --workers`)"


class LoaderLost(ValueError):
    """A loader process is gone; what it was to read can be read again."""


def _watched(loader: Iterator[R]) -> Iterator[R]:
    """What the loader gives. Raises LoaderLost, in one line, where one of its processes died or ran out of shared memory."""
    while True:
        try:
            with DEATHS.told():
                item = next(loader)
        except StopIteration:
            return
        except RuntimeError as error:
            text = str(error)
            if "Bus error" in text or "shared memory" in text or ("/torch_" in text and "No space left" in text):
                raise LoaderLost(
                    "the loader processes ran out of shared memory (/dev/shm); make it larger, or use none of them "
                    "(data.workers 0, `vitrail resume --workers 0`)"
                ) from error
            if re.search(r"DataLoader worker \(pid.*\) (exited|is killed)", text):
                raise LoaderLost(KILLED) from error
            raise
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it handed a batch over
            raise LoaderLost(KILLED) from error
        yield item


def _shared(item: Any) -> Any:
    """The same, its tensors in shared memory, through which it goes.

    The queue would move them there in a thread of its own, where a failure is told to nobody and the batch never comes.
    """
    _, batch, _ = item
    for value in vars(batch).values():
        if isinstance(value, Tensor) and value.numel():
            value.share_memory_()
    return item


def _begin_worker(worker: int) -> None:
    """Ignore Pillow's warnings, and leave signals to the parent.

    It still wants its batch, and a checkpoint; SIGTERM, which is also how it ends a loader, has half a minute.
    """
    ignore_pillow_warnings()
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))

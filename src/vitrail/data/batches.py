"""Batches of raw pixels from a split: the order of an epoch, the crop of each image, and the loader processes."""

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
    """The share of every batch that one of several processes reads."""

    index: int
    count: int

    def of(self, rows: int) -> slice:
        """Return the rows of a batch that belong to this part; the parts differ by one row at most."""
        return slice(self.index * rows // self.count, (self.index + 1) * rows // self.count)


WHOLE = Part(0, 1)


class Job(NamedTuple):
    """A batch to read: epoch, image indexes and turns."""

    epoch: int
    indexes: Int64[Tensor, " B"]
    turns: Int64[Tensor, " B"] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value, because tensors would use shared memory, which the batches need."""
        return _restore_job, (self.epoch, self.indexes.numpy(), None if self.turns is None else self.turns.numpy())


def _restore_job(epoch: int, indexes: np.ndarray, turns: np.ndarray | None) -> Job:
    return Job(epoch, torch.from_numpy(indexes), None if turns is None else torch.from_numpy(turns))


@dataclass(frozen=True)
class _Reader(Dataset[tuple[int, RawBatch, tuple[Skipped, ...]]]):
    """Dataset whose items are whole batches, indexed by `Job`."""

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
    """Return the number of training batches per epoch: full batches only, but at least one."""
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
    in_process: bool = False,
) -> Iterator[tuple[int, RawBatch]]:
    """Yield (epoch, batch) without end, starting at step `start_step`.

    Every epoch has its own order; an incomplete last batch is dropped, unless the set is smaller than one batch.
    Order and crops depend on (seed, epoch, index) alone, so batches are reproducible. An image that can no longer
    be read is missing from its batch and listed in `split.skipped`. Raises ValueError once no image can be read.

    With `augment.repeats` above 1 each image is repeated that often in its batch (Hoffer et al. 2020); an epoch has the
    same number of steps and sees a part of the images, the next one another part (as DeiT: Touvron et al. 2021). With
    `balanced` an epoch draws every class equally often, to within one, however many images it has.

    A batch without readable images is yielded empty, so the step count holds. With `part`, every batch has the rows of that
    part only. With `in_process`, no loader processes are started. Raises ValueError for a batch with fewer images than parts.
    """
    if part.count > min(batch_size, len(split) * augment.repeats):
        few = min(batch_size, len(split) * augment.repeats)
        raise ValueError(f"a batch of {few} images can't be shared by {part.count} processes; use {few} at most")
    steps = steps_per_epoch(split, batch_size=batch_size)
    different = min(len(split), -(-batch_size // augment.repeats))  # images in a batch
    classes = _indexes_by_class(split.labels) if balanced else None

    def jobs() -> Iterator[Job]:
        epoch, step = divmod(start_step, steps)
        while True:
            order = _draw_order(len(split), steps * different, classes, seed=seed, epoch=epoch).view(steps, different)
            # Repeats follow after all other images: an image next to its copy would be mixed with itself.
            order = order.repeat(1, augment.repeats)[:, :batch_size]  # (steps, B)
            again = balanced or augment.repeats > 1
            turns = _count_turns(order.flatten()).view_as(order) if again else None
            order, turns = order[:, part.of(order.shape[1])], None if turns is None else turns[:, part.of(order.shape[1])]
            for at in range(step, steps):
                yield Job(epoch, order[at], None if turns is None else turns[at])
            epoch, step = epoch + 1, 0

    return _read(_Reader(split, seed, augment), jobs(), keep_empty=True, in_process=in_process)


def _draw_order(
    images: int, count: int, classes: Sequence[Int64[Tensor, " _n"]] | None, *, seed: int, epoch: int
) -> Int64[Tensor, " count"]:
    """Draw the `count` images of an epoch, in order.

    Without `classes`, consecutive epochs take consecutive parts of one permutation. With `classes`, the places of all epochs
    go to the classes in turn, and each class fills its places by cycling through its images.
    """
    if classes is None:
        order, part = divmod(epoch, images // count)
        return permutation(images, seed=seed, epoch=order)[part * count : (part + 1) * count]
    parts = []
    for rank, members in enumerate(classes):
        start, stop = (-((rank - place) // len(classes)) for place in (epoch * count, (epoch + 1) * count))
        parts.append(endless(members, seed=seed, start=start, count=stop - start))
    return torch.cat(parts)[permutation(count, seed=seed, epoch=epoch)]


def _indexes_by_class(labels: Int64[Tensor, " N"]) -> tuple[Int64[Tensor, " _n"], ...]:
    """Return the image indexes of each non-empty class."""
    _, counts = labels.unique(return_counts=True)
    return labels.argsort(stable=True).split(counts.tolist())


def _count_turns(order: Int64[Tensor, " M"]) -> Int64[Tensor, " M"]:
    """Count the earlier occurrences of each entry in the order."""
    images, places = order.sort(stable=True)
    turns = torch.arange(len(order)) - torch.searchsorted(images, images)
    return torch.empty_like(order).scatter_(0, places, turns)


def class_weights(labels: Int64[Tensor, " N"], num_classes: int) -> Float[Tensor, " K"]:
    """Return class weights N / (K · images of the class), so that all classes have equal total weight; 0 for an empty one."""
    counts = torch.bincount(labels, minlength=num_classes)
    return torch.where(counts > 0, len(labels) / (num_classes * counts.clamp(min=1)), 0.0)


def eval_batches(split: Split, *, batch_size: int, part: Part = WHOLE) -> Iterator[RawBatch]:
    """Iterate over every image once, in order; the last batch may be smaller. Raises ValueError if no image can be read.

    With `part`, only the images of that part; all parts have the same number of batches, of which the last may be empty.
    """
    batches = -(-len(split) // (batch_size * part.count))
    indexes = torch.arange(len(split))[part.index :: part.count]
    jobs = (Job(0, indexes[at * batch_size : (at + 1) * batch_size]) for at in range(batches))
    return (batch for _, batch in _read(_Reader(split), jobs, keep_empty=part.count > 1))


def _read(
    reader: _Reader, jobs: Iterator[Job], *, keep_empty: bool = False, in_process: bool = False
) -> Iterator[tuple[int, RawBatch]]:
    """Read the jobs in order, in `split.workers` loader processes (0, or `in_process`: in this one)."""
    loader: Iterator[tuple[int, RawBatch, tuple[Skipped, ...]]]
    if reader.split.workers and not in_process:
        loader = iter(
            DataLoader(
                reader,
                sampler=jobs,
                batch_size=None,  # a job is a batch already
                num_workers=reader.split.workers,
                collate_fn=_share_tensors,
                worker_init_fn=_begin_worker,
            )
        )
        WORKER_DEATHS.install()
    else:
        loader = (reader[job] for job in jobs)
    lost_in_a_row = 0
    for epoch, batch, failures in _raise_loader_lost(loader):
        reader.split.record(failures)
        lost_in_a_row = 0 if len(batch) else lost_in_a_row + len(failures)
        if len(batch) or keep_empty:
            yield epoch, batch
        if lost_in_a_row and lost_in_a_row >= len(reader.split):  # a disk that went away, not a file
            raise ValueError(
                f"none of the {len(reader.split)} images can be read any more ({failures[0].path}: {failures[0].reason})"
            )


class WorkerDeaths:
    """SIGCHLD handler that defers the error about a dead loader process until the next batch is requested.

    torch's own handler raises in whatever the main thread is doing: half-way through a step, of which nothing could be
    saved, or in a checkpoint.
    """

    def __init__(self) -> None:
        self._torch_handler: Callable[[int, FrameType | None], Any] = lambda number, frame: None
        self._may_raise = self._pending = False

    def install(self) -> None:
        """Replace torch's handler, which the first loader installs; only in the main thread."""
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            now = signal.getsignal(signal.SIGCHLD)
            if callable(now) and now != self._handle:
                self._torch_handler = now
                signal.signal(signal.SIGCHLD, self._handle)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Let a dead loader process raise RuntimeError in this context; a pending one raises at once."""
        self._may_raise = True
        try:
            if self._pending:
                self._pending = False
                self._torch_handler(signal.SIGCHLD, None)
            yield
        finally:
            self._may_raise = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._may_raise:
            self._torch_handler(number, frame)
        else:
            self._pending = True


WORKER_DEATHS = WorkerDeaths()


KILLED = "a loader process was killed, as happens where memory runs out; use fewer (data.workers, `vitrail resume --workers`)"


class LoaderLost(ValueError):
    """A loader process died; its batch can be read again."""


def _raise_loader_lost(loader: Iterator[R]) -> Iterator[R]:
    """Yield the loader's batches. Raises LoaderLost, in one line, if a loader process died or ran out of shared memory."""
    while True:
        try:
            with WORKER_DEATHS.raised():
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


def _share_tensors(item: Any) -> Any:
    """Collate function that moves the tensors of a batch into shared memory.

    The queue would do so in a background thread, where a failure is not reported and the batch never arrives.
    """
    _, batch, _ = item
    for value in vars(batch).values():
        if isinstance(value, Tensor) and value.numel():
            value.share_memory_()
    return item


def _begin_worker(worker: int) -> None:
    """Ignore Pillow's warnings, and leave signals to the parent process.

    The parent still needs the batch, for a checkpoint; SIGTERM, which also ends a loader, takes effect after 30 seconds.
    """
    ignore_pillow_warnings()
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))

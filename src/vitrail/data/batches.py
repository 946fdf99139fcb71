"""Splits -> batches of raw pixels: the order of every epoch, the crop of every image, and the loader processes."""

# N images · B batch · K classes

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.config import AugmentConfig
from vitrail.data.augment import crop_boxes
from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split
from vitrail.data.draws import Draws, permutation


class Job(NamedTuple):
    """One batch that is to be read."""

    epoch: int
    indexes: Int64[Tensor, " B"]


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
            draws = Draws(seed=self.seed, epoch=job.epoch, indexes=job.indexes)
            boxes = crop_boxes(self.split.sizes[job.indexes], draws, self.augment)
        return job.epoch, *self.split.read(job.indexes, boxes=boxes)


def steps_per_epoch(split: Split, *, batch_size: int) -> int:
    """Training batches an epoch: whole ones only, but at least one."""
    return max(1, len(split) // batch_size)


def train_batches(
    split: Split, *, batch_size: int, seed: int, augment: AugmentConfig, start_step: int = 0
) -> Iterator[tuple[int, RawBatch]]:
    """Endless (epoch, batch), starting with the batch of step `start_step`.

    Every epoch has its own order; what is left over at its end is dropped, unless the set is smaller than one batch.
    Order and crops depend on (seed, epoch, index) alone, so a batch can be made again exactly. An image that can't
    be read any more is missing from its batch and listed in `split.skipped`. Raises ValueError once that is all of them.
    """
    steps = steps_per_epoch(split, batch_size=batch_size)

    def jobs() -> Iterator[Job]:
        epoch, step = divmod(start_step, steps)
        while True:
            order = permutation(len(split), seed=seed, epoch=epoch)
            for first in range(step * batch_size, steps * batch_size, batch_size):
                yield Job(epoch, order[first : first + batch_size])
            epoch, step = epoch + 1, 0

    return _read(_Reader(split, seed, augment), jobs())


def class_weights(labels: Int64[Tensor, " N"], num_classes: int) -> Float[Tensor, " K"]:
    """N / (K · images of the class): what makes every class weigh the same in a sum over all images; 0 for one without images."""
    counts = torch.bincount(labels, minlength=num_classes)
    return torch.where(counts > 0, len(labels) / (num_classes * counts.clamp(min=1)), 0.0)


def eval_batches(split: Split, *, batch_size: int) -> Iterator[RawBatch]:
    """Every image once, in order; the last batch may be short. Raises ValueError if no image can be read any more."""
    positions = torch.arange(len(split))
    jobs = (Job(0, positions[first : first + batch_size]) for first in range(0, len(split), batch_size))
    return (batch for _, batch in _read(_Reader(split), jobs))


def _read(reader: _Reader, jobs: Iterator[Job]) -> Iterator[tuple[int, RawBatch]]:
    """Reads the jobs in their order, in loader processes where the split asks for them."""
    loader: Iterator[tuple[int, RawBatch, tuple[Skipped, ...]]]
    if reader.split.workers:
        loader = iter(
            DataLoader(
                reader,
                sampler=jobs,
                batch_size=None,  # a job is a batch already
                num_workers=reader.split.workers,
                collate_fn=_as_it_is,
                worker_init_fn=_leave_interrupts_to_the_parent,
            )
        )
    else:
        loader = (reader[job] for job in jobs)
    lost_in_a_row = 0
    for epoch, batch, failures in loader:
        reader.split.record(failures)
        if len(batch):
            lost_in_a_row = 0
            yield epoch, batch
            continue
        lost_in_a_row += len(failures)
        if lost_in_a_row >= len(reader.split):  # a disk that went away, not a file
            raise ValueError(
                f"none of the {len(reader.split)} images can be read any more ({failures[0].path}: {failures[0].reason})"
            )


def _as_it_is(item: Any) -> Any:
    return item


def _leave_interrupts_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

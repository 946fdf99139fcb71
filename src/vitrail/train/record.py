"""Record of a run for its report: provenance at the start, at a resumption, and at the end."""

from __future__ import annotations

import dataclasses

from vitrail.train.loop import Loop
from vitrail.weights.provenance import Provenance, now, read_provenance, start_now, write_provenance


def record_start(loop: Loop) -> None:
    """Write a start of the run into its folder, with the lines printed so far."""
    if not loop.world.first:
        return
    known = read_provenance(loop.folder)
    start = start_now(loop.device, step=loop.step, processes=loop.world.size)
    notes = known.notes or tuple(loop.display.lines)
    write_provenance(loop.folder, dataclasses.replace(known, notes=notes, starts=(*known.starts, start)))


def record_end(loop: Loop) -> None:
    """Write the end of training, the number of images, and the training images of each class."""
    if not loop.world.first:
        return
    labels = loop.split.labels
    counted = len(labels) and int(labels.min()) >= 0
    found: Provenance = dataclasses.replace(
        read_provenance(loop.folder),
        ended=now(),
        steps=loop.step,
        seconds=round(loop.pace.elapsed, 1),
        parameters=sum(parameter.numel() for parameter in loop.trained.parameters()),
        images={"train": len(loop.split), **{name: len(split) for name, split in loop.views.items()}},
        class_counts=tuple(labels.bincount(minlength=len(loop.trained.classes)).tolist()) if counted else (),
    )
    write_provenance(loop.folder, found)

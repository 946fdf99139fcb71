"""Preparation of batches beside the computation of the device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from vitrail.data.batch import Batch

Item = TypeVar("Item")


class SideStream:
    """Stream on which a GPU copies and augments a batch while it computes the step before; on other devices, no stream.

    Python runs ahead of a GPU as long as nothing waits for it, so a batch that is launched here starts as soon as it is asked
    for, in the middle of a step. What was prepared is handed over to the stream of the steps, which waits for it on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def iterate(self, items: Iterable[Item], prepare: Callable[[Item], Batch]) -> Generator[tuple[Item, Batch], None, None]:
        """Yield each item with the batch prepared from it; both are computed on this stream."""
        iterator = iter(items)
        while True:
            with self.context():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                batch = prepare(item)
            self.hand_over(batch)
            yield item, batch

    def context(self) -> AbstractContextManager[object]:
        """Return a context in which a GPU's work is launched on this stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def hand_over(self, batch: Batch) -> None:
        """Let the current stream wait for a batch, and keep the memory of the batch until the current stream has used it."""
        if self.stream is None:
            return
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_stream(self.stream)
        for value in batch.tensors().values():
            if value.is_cuda:
                value.record_stream(current)

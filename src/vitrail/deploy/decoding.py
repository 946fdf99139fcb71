"""Decoding in threads, beside the model: a batch is decoded while the one before is computed."""

# C channels · H W image

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from jaxtyping import UInt8
from torch import Tensor

View = UInt8[Tensor, "C H W"] | str
"""Evaluation view of an image, or the reason why there is none."""
Name = TypeVar("Name")
Item = TypeVar("Item")


def decoded_batches(
    items: Iterable[tuple[Name, Item]], read: Callable[[Item], View], *, batch_size: int
) -> Generator[tuple[list[Name], list[View]], None, None]:
    """Yield the names and views of each batch, in order. `read` runs in threads and raises nothing.

    Two batches are in memory at a time. An error of `items` is raised after the batches before it.
    """
    items = iter(items)
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))  # Pillow decodes without Python's lock

    def begin() -> list[tuple[Name, Future[View]]]:
        return [(name, pool.submit(read, item)) for name, item in islice(items, batch_size)]

    try:
        decoding = begin()
        while decoding:
            names, views = [name for name, _ in decoding], [view.result() for _, view in decoding]
            failure: Exception | None = None
            try:
                decoding = begin()
            except Exception as error:  # of the caller's iterator: what came before is answered first
                failure = error
            yield names, views
            del views  # so that two batches are in memory, never three
            if failure is not None:
                raise failure
    finally:
        pool.shutdown(cancel_futures=True)

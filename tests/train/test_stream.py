"""Batches are prepared on a stream of their own, and handed over to that of the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.data.batch import Batch
from vitrail.train.stream import SideStream

events: list[str] = []


def batch(number: int) -> Batch:
    labels = torch.tensor([number])
    return Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2), labels, labels)


class Stream:
    """A stream that notes who waits for whom."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device

    def wait_stream(self, other: Stream) -> None:
        events.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The calls of torch.cuda that a side stream makes."""
    device, main, within = torch.device("cuda", 0), Stream("main", torch.device("cuda", 0)), []
    events.clear()

    @contextmanager
    def stream(side: Stream) -> Iterator[None]:
        within.append(side.name)
        events.append(f"enter {side.name}")
        yield
        events.append(f"leave {within.pop()}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", device))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: tensor.dtype.is_floating_point))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: events.append(f"keep for {stream.name}"))
    return device


def test_without_a_gpu_items_and_batches_come_in_order() -> None:
    pairs = list(SideStream(torch.device("cpu")).iterate(iter("abc"), lambda item: batch(ord(item))))
    assert [item for item, _ in pairs] == ["a", "b", "c"]
    assert [int(one.labels) for _, one in pairs] == [97, 98, 99]


def test_a_batch_is_read_and_prepared_on_the_side_and_waited_for_on_the_device(gpu: torch.device) -> None:
    def items() -> Iterator[int]:
        for number in range(2):
            events.append(f"read {number}")
            yield number

    def prepare(number: int) -> Batch:
        events.append(f"prepare {number}")
        return batch(number)

    for number, _ in SideStream(gpu).iterate(items(), prepare):
        events.append(f"step {number}")
    hand_over = ["main waits for side", "keep for main", "keep for main"]  # images and targets; the rest stays on the CPU
    one = lambda n: ["enter side", f"read {n}", f"prepare {n}", "leave side", *hand_over, f"step {n}"]  # noqa: E731
    assert events == [*one(0), *one(1), "enter side", "leave side"]


@pytest.mark.parametrize("where", ["items", "prepare"])
def test_errors_come_through_between_two_steps(where: str) -> None:
    def items() -> Iterator[int]:
        yield 0
        if where == "items":
            raise ValueError("the disk is gone")
        yield 1

    def prepare(number: int) -> Any:
        if number:
            raise ValueError("the disk is gone")
        return batch(number)

    stream = SideStream(torch.device("cpu")).iterate(items(), prepare)
    next(stream)
    with pytest.raises(ValueError, match="the disk is gone"):
        next(stream)

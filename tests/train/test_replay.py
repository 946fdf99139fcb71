"""A replayed step moves the weights as a launched one, and is taken only where that is faster and right.

Without a GPU a recording is made by tracing: like a CUDA graph it repeats the operations of one step on the same memory, and
every Python number that went into it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from vitrail.data.batch import Batch
from vitrail.models import create_model
from vitrail.settings import OptimConfig, Preprocessing
from vitrail.tasks.classify import Classify
from vitrail.train.optim import build_optimizers
from vitrail.train.replay import TIMED, WARMUP, Losses, Replay, ReplayedStep
from vitrail.train.step import Step

PREPROCESSING = Preprocessing(img_size=(16, 16), in_channels=1, mean=(0.5,), std=(0.2,))
EAGER = WARMUP + TIMED


def build_step(optimizer: str = "muon", *, accumulate: int = 1, dtype: torch.dtype | None = None) -> Step:
    torch.manual_seed(0)
    model = create_model(
        "Ti+/8", img_size=16, in_channels=1, num_classes=3, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0.2
    ).train()
    task = Classify(model, preprocessing=PREPROCESSING)
    cfg = OptimConfig(name=optimizer, lr=0.1, weight_decay=0.1, layer_decay=0.8, muon_precision="fp32")
    return Step(task, build_optimizers(model, cfg, batch_size=8), clip_norm=1.0, accumulate=accumulate, autocast_dtype=dtype)


def batch(seed: int, rows: int = 8) -> Batch:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (rows,), generator=g)
    targets = torch.nn.functional.one_hot(labels, 3).float()
    return Batch(torch.randn(rows, 1, 16, 16, generator=g), targets, labels, torch.arange(rows))


def tensors(step: Step) -> list[torch.Tensor]:
    return [*step.task.parameters(), *step.task.buffers(), *step.optimizers.state_tensors()]


def record_by_tracing(step: Step) -> Callable[[Callable[[], Losses]], Replay]:
    """Record without computing, as CUDA does: tracing computes, so what it changed is put back."""

    def record(run: Callable[[], Losses]) -> Replay:
        before = [value.detach().clone() for value in tensors(step)]
        random = torch.get_rng_state()
        traced = make_fx(run)()
        torch.set_rng_state(random)
        with torch.no_grad():
            for value, old in zip(tensors(step), before, strict=True):
                value.copy_(old)
        step.optimizers.zero_grad()

        def replay() -> Losses:
            with torch.no_grad():  # gradients are operations of the recording
                losses: Losses = traced()
            return losses

        return replay

    return record


class Clock:
    """A clock that gives launches `launch_s` and whole steps `step_s`."""

    def __init__(self, launch_s: float, step_s: float) -> None:
        self.now, self.calls, self.waits = 0.0, 0, 0
        self.launch_s, self.step_s = launch_s, step_s

    def __call__(self) -> float:
        self.calls += 1
        if self.calls % 3 == 2:
            self.now += self.launch_s
        elif self.calls % 3 == 0:
            self.now += self.step_s - self.launch_s
        return self.now


def replayed(step: Step, said: list[str], *, launch_s: float = 0.9, step_s: float = 1.0, **options: Any) -> ReplayedStep:
    record = options.pop("record", record_by_tracing(step))
    return ReplayedStep(step, said.append, wait=lambda: None, record=record, clock=Clock(launch_s, step_s), **options)


def run(
    take: Callable[[Batch], Losses], step: Step, steps: int, *, rows: Callable[[int], int] = lambda number: 8
) -> list[float]:
    losses = []
    for number in range(steps):
        torch.manual_seed(number)
        step.optimizers.set_lr(1.0 / (number + 1))
        losses.append(take(batch(number, rows(number)))["loss"].item())
    return losses


def assert_same_weights(one: Step, two: Step) -> None:
    for left, right in zip(tensors(one), tensors(two), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"dtype": torch.bfloat16}], ids=["plain", "parts", "bf16"])
def test_replayed_steps_are_launched_ones(optimizer: str, options: dict[str, Any]) -> None:
    """Other batches, other draws and other learning rates than the recording's."""
    plain, step, said = build_step(optimizer, **options), build_step(optimizer, **options), []
    take = replayed(step, said)
    expected, actual = run(plain, plain, EAGER + 6), run(take, step, EAGER + 6)
    assert said == []
    assert len(take.recorded) == 1
    assert actual == pytest.approx(expected, rel=1e-5)
    assert_same_weights(plain, step)


def test_each_shape_has_a_recording_of_its_own() -> None:
    plain, step, said = build_step(), build_step(), []
    take = replayed(step, said)
    rows = lambda number: 8 if number % 2 else 6  # noqa: E731
    expected, actual = run(plain, plain, 2 * EAGER + 6, rows=rows), run(take, step, 2 * EAGER + 6, rows=rows)
    assert len(take.recorded) == 2
    assert actual == pytest.approx(expected, rel=1e-5)


def test_a_step_that_computes_for_longer_than_it_launches_is_not_recorded() -> None:
    step, said = build_step(), []
    take = replayed(step, said, launch_s=0.3, record=lambda run: pytest.fail("recorded"))
    run(take, step, EAGER + 4)
    assert not take.enabled
    assert said == []


@pytest.mark.parametrize("fault", ["raises", "wrong"])
def test_a_recording_that_fails_changes_nothing_and_is_told(fault: str) -> None:
    plain, step, said = build_step(), build_step(), []

    def record(run: Callable[[], Losses]) -> Replay:
        losses = run()  # a recording must not compute; this one does, and its weights have to go
        if fault == "raises":
            raise RuntimeError("operation not permitted when stream is capturing\nand a second line")
        return lambda: {**losses, "loss": losses["loss"] * 2}

    take = replayed(step, said, record=record)
    expected, actual = run(plain, plain, EAGER + 4), run(take, step, EAGER + 4)
    assert not take.enabled
    assert not take.recorded
    assert len(said) == 1
    assert "\n" not in said[0]
    assert ("not permitted" if fault == "raises" else "without") in said[0]
    assert actual == pytest.approx(expected, rel=1e-5)
    assert_same_weights(plain, step)


def test_placeholders_are_launched() -> None:
    step, said = build_step(), []
    take = replayed(step, said)
    run(take, step, EAGER + 2)
    taken = take.steps.copy()
    take(dataclasses.replace(batch(0, 1), stands_in=True))
    assert take.steps == taken


def test_only_what_can_be_recorded_is() -> None:
    gpu = torch.device("cuda")
    assert ReplayedStep.supports(build_step("muon"), gpu)
    assert not ReplayedStep.supports(build_step("muon"), torch.device("cpu"))
    assert not ReplayedStep.supports(build_step("sgd"), gpu)
    assert not ReplayedStep.supports(dataclasses.replace(build_step(), scaler=torch.amp.GradScaler("cpu")), gpu)

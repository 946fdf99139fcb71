"""Fit of a run of minutes to the machine: pace, choice and line by value; what a run takes, says and keeps."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from learner import learner
from rich.console import Console
from torch import nn

import vitrail
from cases import ImageFolder
from interrupts import interrupt_at
from vitrail.data import batches
from vitrail.data.batch import Batch, RawBatch
from vitrail.models import meta_model
from vitrail.settings import Settings, TrainConfig, layers, pair
from vitrail.train import assemble, fit
from vitrail.train.fit import Trial, UpdateClock, describe_fit, middle_size, rounded, scale_step, time_steps
from vitrail.train.optim import Optimizers
from vitrail.train.pace import Pace
from vitrail.train.run import Run
from vitrail.train.step import Step

RECIPE = """
model: {name: Ti/16, img_size: 64, embed_dim: 24, num_heads: 2, depth: 3}
optim: {name: muon}
augment: {mixup_alpha: 0.2, mixup_prob: 0.5}
train: {batch_size: 16, device: cpu, precision: fp32, eval_every: 0, ema_decay: 0.9, minutes: 1}
"""
SMALLER = """
smaller:
  - model: {img_size: 48, depth: 2}
  - model: {img_size: 32, depth: 1}
    train: {batch_size: 8}
"""


def settings_of(**train: Any) -> Settings:
    return layers.build([{"model": {"name": "Ti/16", "num_classes": 10, "img_size": 128}, "train": {"minutes": 3, **train}}])


# Pace, choice and line, by value


def test_passes_and_minutes_of_a_pace() -> None:
    trial = Trial(settings_of(batch_size=64), step_s=6.4)
    assert trial.images_per_s == 10
    assert trial.epochs(600) == 3.0  # 180 s at 10 images a second
    assert trial.minutes(600) == 5.0  # 5 times 600 images


@pytest.mark.parametrize(
    ("steps_s", "chosen", "line"),
    [
        ((3.0,), 0, ""),
        ((6.4,), 0, "note: this machine trains 10 images/s: {0} sees each image about 3 times in 3 minutes; "
                    "5 times take about 5 minutes (--minutes 5)"),
        ((6.4, 1.0), 1, "this machine trains 10 images/s: {0} would see each image about 3 times in 3 minutes; "
                        "taken instead: {1}, which sees it at least 5 times (train.smaller false keeps the larger one)"),
        ((64.0, 8.0), 1, "this machine trains 1 images/s: {0} would see each image about 0.3 times in 3 minutes; "
                         "taken instead: {1}, which sees it about 2.4 times (train.smaller false keeps the larger one); "
                         "5 times take about 7 minutes (--minutes 7)"),
    ],
)  # fmt: skip
def test_one_line_tells_pace_choice_and_way_out(steps_s: tuple[float, ...], chosen: int, line: str) -> None:
    big = settings_of(batch_size=64)
    small = layers.build([dataclasses.asdict(big), {"model": {"depth": 2, "img_size": [64, 32]}}])
    trials = [Trial(settings, step_s) for settings, step_s in zip((big, small), steps_s, strict=False)]
    sizes = ("Ti/16 (5.5 M parameters, 128 px)", "Ti/16 (1 M parameters, 64x32 px)")
    assert describe_fit(trials, trials[chosen], images=600) == line.format(*sizes)


def test_numbers_have_two_digits() -> None:
    assert [rounded(value) for value in (0.568, 4.21, 9.96, 10.6, 1234.5)] == ["0.57", "4.2", "10", "11", "1,234"]


def test_a_step_scales_with_its_images_but_for_the_update() -> None:
    assert scale_step(1.0, 0.2, images=8, to=64) == pytest.approx(0.2 + 0.8 * 8)
    assert scale_step(6.6, 0.2, images=64, to=8) == pytest.approx(1.0)


@pytest.mark.parametrize(("start", "middle"), [(None, (128, 128)), (64, (64, 64))])
def test_the_size_of_the_middle_of_the_run_is_measured(start: int | None, middle: tuple[int, int]) -> None:
    settings = settings_of(start_size=start)
    assert middle_size(settings.train, meta_model(settings.model)) == middle


class Clock:
    """A clock that goes on by the cost of the images that a model sees, and of an update."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, image_s: float, update_s: float = 0.0) -> None:
        self.now, self.image_s, self.steps = 0.0, image_s, list[int]()
        monkeypatch.setattr("vitrail.train.fit.time.perf_counter", lambda: self.now)
        self.update_s = update_s

    def step(self) -> Step:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

        def objective(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            self.steps.append(len(batch))
            self.now += self.image_s * len(batch)
            return {"loss": model(batch.images).square().mean()}

        class Slow(torch.optim.SGD):
            def step(slow, closure: Any = None) -> Any:  # type: ignore[override]
                self.now += self.update_s
                return super().step(closure)

        return Step(learner(model, objective), Optimizers((Slow(model.parameters(), lr=0.1),)))


def batch_of(count: int) -> Batch:
    return Batch(torch.randn(count, 1, 8, 8), torch.zeros(count, 3), torch.zeros(count).long(), torch.arange(count))


def test_a_slow_machine_measures_few_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 64 images would take 6.6 s, which 2 s have no room for; the update is not scaled."""
    clock = Clock(monkeypatch, image_s=0.1, update_s=0.2)
    assert time_steps(clock.step(), batch_of(64), enough_s=0.1, limit_s=2.0) == pytest.approx(6.6)
    assert clock.steps == [8, 8]
    assert clock.now == pytest.approx(2.0)


def test_a_fast_machine_is_not_measured_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, image_s=0.001)
    assert time_steps(clock.step(), batch_of(64), enough_s=0.1, limit_s=2.0) == pytest.approx(0.064)
    assert clock.steps == [8]


def test_between_them_full_batches_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, image_s=0.001)
    time_steps(clock.step(), batch_of(64), enough_s=0.01, limit_s=2.0)
    assert clock.steps == [8, 8, 64, 64, 64]


@pytest.mark.parametrize(("run_s", "limit_s"), [(1.2, 0.12), (40, 1.0), (180, 3.6), (36_000, 10.0)])
def test_the_limit_is_a_share_of_the_run(run_s: float, limit_s: float) -> None:
    assert fit.time_limit(run_s) == pytest.approx(limit_s)


def test_the_update_clock_adds_up_all_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, image_s=0.0, update_s=0.25)
    optimizers = Optimizers(clock.step().optimizers.parts + clock.step().optimizers.parts)
    updates = UpdateClock(optimizers)
    optimizers.step()
    assert updates.seconds == pytest.approx(0.5)


def test_shrunk_images_are_what_a_smaller_split_holds() -> None:
    raw = RawBatch(
        images=torch.full((2, 3, 30, 40), 7, dtype=torch.uint8),
        sizes=torch.tensor([[30, 40], [30, 21]]),
        boxes=torch.tensor([[0.0, 0.0, 30.0, 40.0], [3.0, 6.0, 12.0, 15.0]]),
        labels=torch.tensor([0, 1]),
        indexes=torch.tensor([5, 6]),
    )
    small = raw.shrunk(1 / 3)
    assert small.images.shape == (2, 3, 10, 13)
    assert small.images.unique().tolist() == [7]
    assert small.sizes.tolist() == [[10, 13], [10, 7]]
    torch.testing.assert_close(small.boxes, raw.boxes / 3)
    assert small.indexes is raw.indexes


# Runs


@pytest.fixture
def photos(image_folder: ImageFolder) -> Path:
    return image_folder({"train": {"cat": 20, "dog": 20}, "val": {"cat": 4, "dog": 4}})


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with two smaller models, in the place of the package's for photographs."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "from-scratch.yaml").write_text(RECIPE + SMALLER)
    monkeypatch.setattr(layers, "RECIPES", tmp_path / "recipes")
    return tmp_path / "recipes"


def in_steps(monkeypatch: pytest.MonkeyPatch, steps: int) -> list[float]:
    """Let a run of minutes take this number of steps instead. Return a list that gets the minutes' measured seconds."""
    measured = list[float]()

    def build_pace(settings: Settings, split: Any, *, prepared_s: float) -> Pace:
        measured.append(prepared_s)
        return Pace(steps)

    monkeypatch.setattr(assemble, "build_pace", build_pace)
    return measured


def at_pace(monkeypatch: pytest.MonkeyPatch, images_per_s: Callable[[Settings], float]) -> list[int]:
    """Replace the measured pace by a function of the settings. Return a list of the image sides that are tried."""
    sides = list[int]()

    def measure_step(context: assemble.Context, images: assemble.Images) -> float:
        sides.append(max(pair(context.settings.model.img_size)))
        return context.settings.train.batch_size / images_per_s(context.settings)

    monkeypatch.setattr(fit, "measure_step", measure_step)
    return sides


def train(photos: Path, out: Path, **sections: Any) -> tuple[Run, str]:
    said = io.StringIO()
    run = vitrail.train(photos, recipe="from-scratch", out=out, console=Console(file=said, width=500), **sections)
    return run, said.getvalue()


def side_of(run: Run) -> int:
    height, _ = pair(layers.from_yaml((run.folder / "config.yaml").read_text()).model.img_size)
    return height


PACES = {64: 1.0, 48: 2.0, 32: 100.0}
"""Images a second, by image side; 5 passes over 40 images in a minute take 3.3."""


def test_a_slow_machine_takes_the_first_model_that_sees_enough(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_steps(monkeypatch, 2)
    sides = at_pace(monkeypatch, lambda settings: PACES[settings.model.img_size])  # type: ignore[index]
    run, said = train(photos, tmp_path / "run")
    assert sides == [64, 48, 32]
    settings = layers.from_yaml((run.folder / "config.yaml").read_text())
    assert (side_of(run), settings.train.batch_size, settings.train.minutes) == (32, 8, 1)
    assert vitrail.load(run.folder).preprocessing.img_size == (32, 32)  # type: ignore[union-attr]
    line = (
        "trains 1 images/s: Ti/16 (0.041 M parameters, 64 px) would see each image about 1.5 times in 1 minute; taken instead: "
    )
    assert said.count("this machine trains") == said.count(line) == 1
    assert "32x32 px" in said


def test_the_first_that_is_enough_is_taken_and_no_smaller_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_steps(monkeypatch, 1)
    sides = at_pace(monkeypatch, lambda settings: 4.0 if settings.model.img_size == 48 else 1.0)
    assert side_of(train(photos, tmp_path / "run")[0]) == 48
    assert sides == [64, 48]


def test_where_none_is_enough_the_fastest_is_taken_with_the_minutes_it_needs(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_steps(monkeypatch, 1)
    at_pace(monkeypatch, lambda settings: 2.0 if settings.model.img_size == 48 else 1.0)
    run, said = train(photos, tmp_path / "run")
    assert side_of(run) == 48
    assert "which sees it about 3 times (train.smaller false keeps the larger one); 5 times take about 2 minutes" in said


@pytest.mark.parametrize(
    ("sections", "side", "tried"),
    [
        ({"train": {"smaller": False}}, 64, [64]),
        ({"model": {"depth": 1}}, 64, [64]),
        ({"model": "Ti/32", "train": {"batch_size": 2}}, 64, [64]),
        ({"model": {"img_size": 80}}, 80, [80]),
        ({"train": {"start_size": 48}}, 48, [64, 48]),
    ],
    ids=["refused", "a field of the model", "a name", "a size", "contradicted by a setting"],
)
def test_what_the_user_chose_is_kept_with_a_note(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], side: int, tried: list[int]
) -> None:
    in_steps(monkeypatch, 1)
    sides = at_pace(monkeypatch, lambda settings: 1.0 + (settings.model.img_size == 48))
    run, said = train(photos, tmp_path / "run", **sections)
    assert side_of(run) == side
    assert sides == tried
    assert ("note: this machine trains 1 images/s" in said) == (side != 48)
    assert said.count("5 times take about") == 1


def test_a_requested_field_stays_on_a_smaller_model(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_steps(monkeypatch, 1)
    at_pace(monkeypatch, lambda settings: PACES[settings.model.img_size])  # type: ignore[index]
    run, _ = train(photos, tmp_path / "run", train={"batch_size": 12})
    assert layers.from_yaml((run.folder / "config.yaml").read_text()).train.batch_size == 12
    assert side_of(run) == 32


@pytest.mark.parametrize("length", [{"steps": 2}, {"epochs": 1}, {"minutes": 1, "min_epochs": 0}])
def test_nothing_is_measured_for_a_fixed_length(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: dict[str, Any]
) -> None:
    in_steps(monkeypatch, 2)
    sides = at_pace(monkeypatch, lambda settings: 0.001)
    run, said = train(photos, tmp_path / "run", train=length)
    assert (side_of(run), sides) == (64, [])
    assert "this machine" not in said


def test_weights_fix_the_model_and_the_note_is_given(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_steps(monkeypatch, 1)
    train(photos, tmp_path / "base", train={"steps": 1})
    sides = at_pace(monkeypatch, lambda settings: 1.0)
    said = io.StringIO()
    options: dict[str, Any] = {"batch_size": 8, "device": "cpu", "precision": "fp32", "minutes": 1, "ladder": False}
    (tmp_path / "recipes" / "finetune.yaml").write_text("optim: {lr: 1e-3}")
    run = vitrail.train(
        photos, weights=tmp_path / "base", out=tmp_path / "run", train=options, console=Console(file=said, width=500)
    )
    assert (side_of(run), sides) == (64, [64])
    assert "note: this machine trains 1 images/s: " in said.getvalue()


@pytest.mark.parametrize("over", [{}, {"optim": {"name": "adamw"}, "train": {"accumulate": 2, "start_size": 32}}])
def test_a_measured_run_has_the_losses_of_one_that_is_not(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: dict[str, Any]
) -> None:
    """Dropout, mixing and initial weights draw as they would: the measurement leaves no trace."""
    measured = in_steps(monkeypatch, 4)
    monkeypatch.setattr("vitrail.train.loop.LOG_EVERY_S", 0.0)
    over = {"model": {"drop_rate": 0.2, "drop_path_rate": 0.2}, **over}
    train_over = over.pop("train", {})
    states = list[torch.Tensor]()
    build = assemble.build_start_model
    monkeypatch.setattr(assemble, "build_start_model", lambda *args: (states.append(torch.get_rng_state()), build(*args))[1])
    torch.manual_seed(3)
    without, said = train(photos, tmp_path / "without", **over, train={"min_epochs": 0, **train_over})
    torch.manual_seed(3)
    least = train(photos, tmp_path / "with", **over, train={"min_epochs": 1e-6, **train_over})[0]
    torch.manual_seed(3)
    whole, said = train(photos, tmp_path / "whole", **over, train={"min_epochs": 1e9, **train_over})  # all steps are measured
    assert "note: this machine trains " in said
    assert all(torch.equal(state, states[0]) for state in states)
    assert measured[0] == 0.0
    assert min(measured[1:]) > 0.0, "the time of the measurement is part of the minutes"
    for run in (least, whole):
        assert (run.folder / "model.safetensors").read_bytes() == (without.folder / "model.safetensors").read_bytes()
        assert losses(run) == losses(without)


def losses(run: Run) -> list[float]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_each_model_is_measured_by_real_steps_without_loader_processes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images that are decoded for each batch, in loader processes while training."""
    in_steps(monkeypatch, 1)
    loaders, seen = list[object](), list[tuple[int, Sequence[Trial]]]()
    loader, describe = batches.DataLoader, fit.describe_fit

    def start_loader(*args: Any, **options: Any) -> Any:
        loaders.append(args)
        return loader(*args, **options)

    def note(trials: Sequence[Trial], chosen: Trial, *, images: int) -> str:
        seen.append((len(loaders), trials))
        return describe(trials, chosen, images=images)

    monkeypatch.setattr(batches, "DataLoader", start_loader)
    monkeypatch.setattr(fit, "describe_fit", note)
    train(photos, tmp_path / "run", data={"memory_gb": 0, "workers": 2}, train={"min_epochs": 1e9})
    [(started, trials)] = seen
    assert (started, len(trials)) == (0, 3)
    assert all(0 < trial.step_s < 60 for trial in trials)
    assert loaders, "which training itself starts"


def test_a_smaller_run_resumes_bit_for_bit(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_steps(monkeypatch, 6)
    at_pace(monkeypatch, lambda settings: PACES[settings.model.img_size])  # type: ignore[index]
    straight, _ = train(photos, tmp_path / "straight")
    with monkeypatch.context() as patched:
        interrupt_at(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            train(photos, tmp_path / "broken")
    sides = at_pace(monkeypatch, lambda settings: 1000.0)
    resumed = vitrail.resume(tmp_path / "broken", console=Console(file=io.StringIO()))
    assert sides == [], "a resumed run has its model"
    assert side_of(resumed) == 32
    assert (resumed.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


def test_a_negative_number_of_passes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"train.min_epochs -1.0 must not be negative"):
        TrainConfig(min_epochs=-1.0)

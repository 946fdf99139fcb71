"""`vitrail sweep`, as users type it: runs, table and plot, going on after a stop, and mistakes before the first run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command_line import TINY, Said, Typed
from vitrail import cli
from vitrail.train import loop, sweep

RUN = (*TINY, "--model.img_size", "32", "--train.eval_every", "0", "--train.device", "cpu", "--data.workers", "0")
RATIOS = ("--set", "model.mlp_ratio=1,2", "--seeds", "2", *RUN)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes: 20 to train on, 4 and 4."""
    folder, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two values and two seeds."""
    folder = tmp_path_factory.mktemp("sweeps") / "ratio"
    assert cli.main(["sweep", str(data), "--recipe", "from-scratch", *RATIOS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def sweep_it(vitrail: Typed, data: Path) -> Typed:
    """Types `vitrail sweep` about the photographs."""
    return lambda *words: vitrail("sweep", data, "--recipe", "from-scratch", *words)


def models(folder: Path) -> dict[str, int]:
    """Time of writing of each run's model."""
    return {
        path.parent.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.glob("*/*/model.safetensors")
    }


def results(folder: Path) -> list[tuple[Any, ...]]:
    """Accuracy and difference of each run and group, without its path."""
    found = json.loads((folder / "sweep.json").read_text())["comparison"]
    return [(row["accuracy"], row["to_first"]) for row in found["runs"]] + [
        (row["mean"], row["interval"], row["to_first"]) for row in found["groups"]
    ]


def test_each_value_and_seed_is_a_run(finished: Path) -> None:
    assert set(models(finished)) == {f"mlp_ratio={ratio}/seed-{seed}" for ratio in (1, 2) for seed in (0, 1)}
    found = json.loads((finished / "sweep.json").read_text())
    assert found["choices"] == {"model.mlp_ratio": [1.0, 2.0]}
    assert [(run["values"], run["seed"]) for run in found["runs"]] == [
        ({"model.mlp_ratio": ratio}, seed) for ratio in (1.0, 2.0) for seed in (0, 1)
    ]
    assert [len(group["runs"]) for group in found["comparison"]["groups"]] == [2, 2]
    assert (found["comparison"]["split"], found["comparison"]["images"]) == ("val", 4)
    assert found["learning_curves"] == found["failed"] == []
    assert (finished / "sweep.png").stat().st_size > 5000
    settings = (finished / "mlp_ratio=2" / "seed-1" / "config.yaml").read_text()
    assert "mlp_ratio: 2.0" in settings
    assert "seed: 1" in settings


def test_a_finished_sweep_trains_nothing_and_prints_its_table(sweep_it: Typed, finished: Path) -> None:
    before = models(finished)
    assert "photos, test: 4 images" in sweep_it(*RATIOS, "--out", finished, "--split", "test").out
    said = sweep_it(*RATIOS, "--out", finished)
    assert (said.code, said.out.count("is finished"), models(finished)) == (0, 4, before)
    for words in ("photos, val: 4 images", "mlp_ratio=2/seed-1", "than the first", "seeds", "sweep.png"):
        assert words in said.out


def test_a_stopped_sweep_goes_on_where_it_was(
    sweep_it: Typed, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, steps = loop.Loop.log, list[int]()

    def interrupted(self: loop.Loop, *arguments: object, **options: object) -> None:
        log(self, *arguments, **options)  # type: ignore[arg-type]
        steps.append(self.step)
        if len(steps) == 3:  # the first step of the second run
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "LOG_EVERY_S", 0.0)
    monkeypatch.setattr(loop.Loop, "log", interrupted)
    said = sweep_it(*RATIOS, "--out", tmp_path / "ratio")
    assert said.code == 130
    first = models(tmp_path / "ratio")
    assert list(first) == ["mlp_ratio=1/seed-0"]
    monkeypatch.setattr(loop.Loop, "log", log)
    said = sweep_it(*RATIOS, "--out", tmp_path / "ratio")
    assert (said.code, said.out.count("is finished"), said.out.count("resumed at step 1")) == (0, 1, 1)
    assert models(tmp_path / "ratio")["mlp_ratio=1/seed-0"] == first["mlp_ratio=1/seed-0"]
    assert results(tmp_path / "ratio") == results(finished), "as if it had not been stopped"


def test_other_arguments_are_refused_and_more_seeds_are_added(sweep_it: Typed, finished: Path, tmp_path: Path) -> None:
    before = models(finished)
    said = sweep_it(*RATIOS, "--out", finished, "--optim.lr", "1e-4")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "was started with different arguments" in said.err
    one = [word if word != "2" else "1" for word in RATIOS]
    assert sweep_it(*one, "--out", tmp_path / "more").code == 0
    said = sweep_it(*RATIOS, "--out", tmp_path / "more")
    assert (said.code, said.out.count("is finished"), len(models(tmp_path / "more"))) == (0, 2, 4)
    assert models(finished) == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--set", "optim.lr=1e-3,-1"), "lr=-1: "),
        (("--set", "model.pool=avg,max"), 'model.pool "max": it takes one of'),
        (("--set", "model.depht=1,2"), "--model.depht is not an option of vitrail sweep; did you mean --model.depth?"),
        (("--set", "pool=avg,map"), "did you mean --model.pool?"),
        (("--set", "recipe=mnist,cifar10"), "is not a setting"),
        (("--set", "optim.lr"), "has no values"),
        (("--set", "optim.lr=1e-3,0.001"), "needs different values"),
        (("--set", "model.depth=2,4"), "model.depth has values of the sweep, and one of its own"),
        (("--set", "optim.lr=1e-3", "--set", "optim.lr=1e-4"), "stands twice"),
        (("--set", "optim.lr=1e-3", "--seeds", "1"), "has nothing to compare"),
        (("--set", "optim.lr=1e-3", "--seeds", "0"), "seeds 0 must be at least 1"),
        (("--set", "train.seed=1,2"), "use --seeds N"),
        (("--set", "train.task=classify,mae"), "task=mae: "),
        (("--set", "data.workers=0,0.5"), "it takes a whole number"),
        ((), "a sweep needs a setting and its values"),
    ],
)
def test_mistakes_are_told_before_the_first_run(sweep_it: Typed, tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    said = sweep_it(*RUN, *words, "--out", tmp_path / "none")
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert part in said.err
    assert not (tmp_path / "none").exists()


def test_a_folder_of_other_things_is_refused(sweep_it: Typed, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    said = sweep_it(*RATIOS, "--out", tmp_path)
    assert "exists and is no sweep" in said.err


def test_a_run_that_fails_does_not_end_the_sweep(sweep_it: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_request = sweep.run_request

    def fail(request: object, *, out: Path, **options: object) -> object:
        if out.parent.name == "mlp_ratio=1" and out.name == "seed-1":
            raise ValueError("loss is not finite")
        return run_request(request, out=out, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "run_request", fail)
    said: Said = sweep_it(*RATIOS, "--out", tmp_path / "some")
    assert said.code == 1
    assert "seed-1 failed: loss is not finite" in said.err
    found = json.loads((tmp_path / "some" / "sweep.json").read_text())
    assert [len(group["runs"]) for group in found["comparison"]["groups"]] == [1, 2]
    assert [each["reason"] for each in found["failed"]] == ["loss is not finite"]


def test_fractions_of_the_data_end_in_a_learning_curve(sweep_it: Typed, tmp_path: Path) -> None:
    said = sweep_it("--set", "data.fraction=0.25,0.5,1", "--seeds", "1", *RUN, "--out", tmp_path / "curve")
    assert said.code == 0, said.err
    assert "Learning curve, from 50 % to 100 % of the training images: " in said.out
    assert "over the images, of one seed" in said.out
    assert [f"{count} training images" in said.out for count in (5, 10, 20)] == [True] * 3

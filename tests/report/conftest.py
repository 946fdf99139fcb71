"""Runs to report on: tiny models, two steps, on a folder with names that HTML must not obey."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import TINY
from vitrail import cli
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.robustness import ConditionAccuracy, MeanError, Robustness

NASTY = ("<script>alert(1)<b>", 'dog & "co"')
"""Names of classes; a folder's name has no slash."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two classes, and labels.csv in a folder beside them."""
    root, rng = tmp_path_factory.mktemp("report") / "my photos", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 6), ("test", 6)):
        for name, colour in zip(NASTY, ((180, 90, 60), (120, 110, 120)), strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 60, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


@pytest.fixture(scope="session")
def run_folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the photographs, with its report."""
    folder = tmp_path_factory.mktemp("runs") / "a <run>"
    model = ["--model", "Ti/16", "--model.img_size", "32", "--data.workers", "0"]
    assert cli.main(["train", str(photos), "--recipe", "from-scratch", *model, "--out", str(folder), *TINY]) == 0
    return folder


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def robustness() -> Robustness:
    """A measurement of one corruption and one sweep, on 10 of 12 images."""
    rows = tuple(ConditionAccuracy(float(at), Accuracy(9 - at, 10)) for at in range(1, 6))
    sweep = tuple(ConditionAccuracy(value, Accuracy(5, 10)) for value in (16.0, 32.0, 64.0))
    return Robustness(
        data="photos",
        split="test",
        images=10,
        split_images=12,
        img_size=(32, 32),
        seed=0,
        clean=Accuracy(9, 10),
        corruptions={"motion_blur": rows},
        sweeps={"input size": sweep},
        mean_corruption_error=MeanError(0.4, (0.3, 0.5)),
        relative_corruption_error=MeanError(0.3, (0.2, 0.4)),
        notes=("input size 48: <too large>",),
        seconds=1.5,
    )

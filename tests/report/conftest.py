"""Runs to report on: tiny models, two steps, on a folder with names that HTML must not obey."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import TINY
from vitrail import cli

ImageFolder = Callable[..., Path]  # the other conftest.py's, from which tests import it
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

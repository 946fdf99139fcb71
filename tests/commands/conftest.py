"""A run, and images, to type commands about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cases import ImageFolder
from command_line import TINY
from vitrail import cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded sample: two steps of a tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "first run"
    assert cli.main(["train", "fashion-sample", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, one of them not readable."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b[bold].png", "more/c.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def photos(image_folder: ImageFolder) -> Path:
    """Eight photographs of two classes, and four to test on."""
    return image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}})

"""`data.pack`: training on images of many sizes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import vitrail
from interrupts import interrupt_at
from vitrail.tasks.classify import Classify
from vitrail.train.loop import Interrupted

SETTINGS: dict[str, Any] = {
    "model": {"name": "Ti/16", "embed_dim": 16, "num_heads": 2, "depth": 2, "img_size": 64, "patch_drop_rate": 0.25},
    "data": {"pack": True, "workers": 0},
    "augment": {"crop": "resized", "mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    "optim": {"name": "adamw"},
    "train": {"steps": 6, "batch_size": 8, "device": "cpu", "precision": "fp32", "eval_every": 0},
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("dark", "light"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            height, width = generator.integers(20, 150, 2)
            pixels = generator.integers(0, 128, (height, width, 3)) + (100 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def train(photos: Path, out: Path, **sections: dict[str, Any]) -> Path:
    merged = {name: section | sections.get(name, {}) for name, section in SETTINGS.items()}
    merged |= {name: section for name, section in sections.items() if name not in SETTINGS}
    return vitrail.train(str(photos), out=out, console=Console(file=io.StringIO()), **merged).folder


def test_training_sees_many_sizes_and_resumes_to_the_bit(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[tuple[int, int]] = set()
    forward = Classify.forward

    def record(task: Classify, batch: Any) -> dict[str, torch.Tensor]:
        sizes.update(batch.sizes)
        return forward(task, batch)

    monkeypatch.setattr(Classify, "forward", record)
    whole = train(photos, tmp_path / "whole")
    assert len(sizes) > 3
    assert all(height % 16 == width % 16 == 0 and height * width <= 64 * 64 for height, width in sizes)

    with monkeypatch.context() as patched:
        interrupt_at(patched, 3)
        with pytest.raises(Interrupted):
            train(photos, tmp_path / "parts")
    vitrail.resume(tmp_path / "parts", console=Console(file=io.StringIO()))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, tmp_path / "parts")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"augment": {"crop": "none"}}, 'use augment.crop resized, not "none"'),
        ({"train": {"patch_sizes": (8, 16)}}, "leave train.patch_sizes out"),
        ({"model": {"name": "Ti/16", "dist_token": True}}, "one head"),
    ],
)
def test_settings_that_need_one_size_are_refused(sections: dict[str, Any], message: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(photos, tmp_path / "run", **sections)

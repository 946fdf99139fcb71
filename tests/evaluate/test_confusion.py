from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.evaluate import Evaluation, save_confusion, score


def evaluation(names: list[str], count: int = 300) -> Evaluation:
    generator = torch.Generator().manual_seed(len(names))
    labels = torch.arange(count) % len(names)
    logits = torch.randn(count, len(names), generator=generator)
    logits[torch.arange(count), labels] += 2
    return score(logits, labels, classes=names)


@pytest.mark.parametrize("classes", [2, 10, 60, 300])
def test_the_table_reads_back(classes: int, tmp_path: Path) -> None:
    names = [f'name "{i}", with a comma' for i in range(classes)]
    result = evaluation(names)
    png, table = save_confusion(result, tmp_path)
    assert (png, table) == (tmp_path / "confusion.png", tmp_path / "confusion.csv")
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header[1:] == names
    assert [row[0] for row in rows] == names
    assert torch.equal(torch.tensor([[int(cell) for cell in row[1:]] for row in rows]), result.confusion)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_picture_is_framed_by_white_and_not_cut_off(classes: int, tmp_path: Path) -> None:
    """Long names, at either side, leave a margin of blank pixels on all four sides."""
    names = [f"a rather long name for a class, {i:03d}" for i in range(classes)]
    png, _ = save_confusion(evaluation(names), tmp_path)
    with Image.open(png) as image:
        ink = np.asarray(image.convert("L")) < 250
        assert max(image.size) < 3000
    assert not any(edge.any() for edge in (ink[:4], ink[-4:], ink[:, :4], ink[:, -4:]))
    assert ink.mean() > 0.01


@pytest.mark.parametrize(
    "names", [["$5", "a_b^c", "x$\\frac$"], ["靴", "T恤", "🙂"], ["", " ", "\n"], ["\udcff", "\ud800", "\x1b\r"]]
)
def test_names_are_not_markup_and_need_no_font(names: list[str], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_confusion(evaluation(names), tmp_path)


def test_no_mistakes_and_a_class_without_images(tmp_path: Path) -> None:
    result = score(torch.eye(3)[:2] * 9, torch.tensor([0, 1]), classes=("a", "b", "c"))
    png, _ = save_confusion(result, tmp_path)
    assert png.stat().st_size > 1000


def test_the_same_evaluation_gives_the_same_picture(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
        save_confusion(evaluation(["a", "b"]), folder)
    assert (first / "confusion.png").read_bytes() == (second / "confusion.png").read_bytes()

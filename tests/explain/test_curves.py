"""Curves as pictures: the lines are the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from vitrail.explain import Comparison, compare
from vitrail.explain.curves import curves
from vitrail.models import ViT


@pytest.fixture(scope="module")
def found() -> Comparison:
    torch.manual_seed(0)
    model = ViT(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3).eval()
    model.classes = ("a\udcffnt", "$bee_", "cat")
    return compare(model, torch.randn(2, 3, 16, 16), methods=["relevance", "rollout"], target=[0, 1], steps=4, draws=3)


def figure_of(comparison: Comparison, *, index: int | None = None) -> Figure:
    return curves(comparison.methods, comparison.random, comparison.classes, index=index)


def lines(figure: Figure, side: int) -> list[np.ndarray]:
    """Heights of the lines of one of the two plots: of each method with shuffled weights, and its own."""
    return [np.asarray(line.get_ydata()) for line in figure.axes[side].lines]


@pytest.mark.parametrize("index", [None, 1])
def test_lines_are_the_scores(found: Comparison, index: int | None) -> None:
    chosen = slice(None) if index is None else slice(index, index + 1)
    figure = figure_of(found, index=index)
    for place, side in enumerate(("insertion", "deletion")):
        drawn = lines(figure, place)
        assert len(drawn) == 4
        for number, one in enumerate(found.methods.values()):
            for scores, line in ((one.shuffled_scores, drawn[2 * number]), (one.scores, drawn[2 * number + 1])):
                np.testing.assert_allclose(line, getattr(scores, f"{side}_curves")[chosen].mean(0), rtol=1e-6)
        area = getattr(found.methods["rollout"].scores, side)[chosen].mean().item()
        blind = getattr(found.methods["rollout"].shuffled_scores, side)[chosen].mean().item()
        words = [text.get_text() for text in figure.axes[place].get_legend().get_texts()]  # type: ignore[union-attr]
        assert words[2] == f"rollout {area:.2f} (dashed, with shuffled weights: {blind:.2f})"
        assert words[0].startswith("random 0.")
    assert figure.axes[0].get_ylabel() == ("probability, mean of 2 images" if index is None else "probability, $bee_")


def test_any_name_is_written(found: Comparison, tmp_path: Path) -> None:
    for index in (0, 1):
        with Image.open(found.save(tmp_path / "curves.png", index=index)) as image:
            assert np.asarray(image.convert("L")).std() > 5
    assert found.save(tmp_path / "curves.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(ValueError, match=r"^image 2 does not exist; there are images 0 to 1$"):
        found.save(tmp_path / "curves.png", index=2)
    with pytest.raises(ValueError, match=r"neither \.png nor \.svg"):
        found.save(tmp_path / "curves.jpg")

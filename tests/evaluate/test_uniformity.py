"""Uniformity: values by hand and by the paper's formula, blocks, bounds, and an interval that covers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.evaluate import uniformity as module
from vitrail.evaluate.uniformity import uniformity


def test_values_by_hand() -> None:
    assert uniformity(torch.ones(5, 3)).value == pytest.approx(0)
    assert uniformity(torch.tensor([[2.0, 0.0], [-0.1, 0.0]])).value == pytest.approx(-8), "opposite: ‖x - y‖² is 4"
    assert uniformity(torch.eye(4)).value == pytest.approx(-4), "at right angles: 2"
    assert uniformity(torch.zeros(3, 4)).value == pytest.approx(0), "no direction: all at the origin"


@settings(max_examples=25)
@given(count=st.integers(2, 40), width=st.integers(1, 6), seed=st.integers(0, 99), rows=st.integers(1, 50))
def test_the_papers_formula_in_any_blocks(count: int, width: int, seed: int, rows: int) -> None:
    embeddings = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", rows)
        value, (low, high) = uniformity(embeddings)
    pairs = torch.pdist(
        F.normalize(embeddings.double(), dim=1)
    ).square()  # their code: torch.pdist(x).pow(2).mul(-2).exp().mean().log()
    assert value == pytest.approx(float(pairs.mul(-2).exp().mean().log()), abs=1e-9)
    assert -8 <= low <= value + 1e-9 <= high + 2e-9 <= 3e-9
    assert uniformity(embeddings * 3).value == pytest.approx(value, abs=1e-5)


def test_the_interval_covers_and_narrows() -> None:
    generator, covered, widths = torch.Generator().manual_seed(0), 0, []
    truth = uniformity(torch.randn(2000, 3, generator=generator) + 1).value
    for _ in range(20):
        _, (low, high) = uniformity(torch.randn(120, 3, generator=generator) + 1)
        covered += low <= truth <= high
        widths.append(high - low)
    assert covered >= 16
    assert max(widths) < 0.8
    assert uniformity(torch.randn(19, 3)).interval == (-8, 0)


def test_many_images_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    whole = uniformity(embeddings)
    monkeypatch.setattr(module, "MOST_IMAGES", 200)
    drawn = uniformity(embeddings)
    assert drawn.value != whole.value
    assert drawn.value == pytest.approx(whole.value, abs=0.1)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^uniformity compares pairs of images, and there are 1 images; give 2 at least"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"^the embeddings are not finite"):
        uniformity(torch.tensor([[1.0, math.nan], [0.0, 0.0]]))

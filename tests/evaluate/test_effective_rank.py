"""Effective rank: known spectra, bounds, and an interval that covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.evaluate.effective_rank import effective_rank, effective_rank_interval


def test_orthogonal_directions_of_one_length_count_fully() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 4)) == 1


@settings(max_examples=30)
@given(count=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_the_formula_its_bounds_and_no_scale(count: int, width: int, seed: int, scale: float) -> None:
    embeddings = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    share = np.linalg.svd(embeddings.double().numpy(), compute_uv=False)
    share = share / share.sum()
    rank = effective_rank(embeddings)
    assert rank == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert 1 - 1e-9 <= rank <= min(count, width) + 1e-9
    assert effective_rank(embeddings * scale) == pytest.approx(rank, rel=1e-5)


def test_the_interval() -> None:
    few = torch.randn(19, 8)
    assert effective_rank_interval(few) == (1.0, 8.0)
    widths = []
    for count in (100, 2000):
        embeddings = torch.randn(count, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 1, 8)
        low, high = effective_rank_interval(embeddings)
        assert 1 <= low <= effective_rank(embeddings) <= high <= 8
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^the embeddings are not finite; use fp32"):
        effective_rank(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match=r"^effective rank needs at least 1 embedding"):
        effective_rank(torch.zeros(0, 3))

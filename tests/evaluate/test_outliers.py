"""Energy, its threshold, and AUROC beside scikit-learn."""

from __future__ import annotations

import math

import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.evaluate.outliers import auroc, energy, outlier_threshold

scores = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=1, max_size=30)


@given(scores, scores)
def test_separation_is_scikit_learns_auroc(inside: list[float], outside: list[float]) -> None:
    truth = [0] * len(inside) + [1] * len(outside)
    expected = sklearn.metrics.roc_auc_score(truth, inside + outside)
    assert auroc(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(expected, abs=1e-6)


def test_energy_is_low_where_a_logit_is_high() -> None:
    found = energy(torch.tensor([[10.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([-math.log(math.exp(10) + 2), -math.log(3)])


@given(st.integers(20, 500))
def test_threshold_accepts_the_share(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    accepted = (values <= outlier_threshold(values)).double().mean().item()
    assert 0.95 <= accepted <= 0.95 + 1.5 / count


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="there are none"):
        outlier_threshold(torch.zeros(0))
    with pytest.raises(ValueError, match="not finite"):
        outlier_threshold(torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="images in both sets"):
        auroc(torch.zeros(0), torch.ones(1))

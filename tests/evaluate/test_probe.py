from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vitrail.evaluate import probe as module
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.probe import ALONE, FOLDS, GRID, Probe, folds, held_out, linear_probe


def blobs(count: int, classes: int = 4, *, width: int = 12, seed: int = 0, spread: float = 2.0) -> LabelledEmbeddings:
    """Overlapping classes whose features are correlated and of many sizes."""
    fixed = torch.Generator().manual_seed(width)
    centres, mixing = torch.randn(classes, width, generator=fixed), torch.randn(width, width, generator=fixed)
    sizes = torch.logspace(-2, 2, width)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    raw = centres[labels] + spread * torch.randn(count, width, generator=generator)
    return LabelledEmbeddings((raw @ mixing + 3) * sizes, labels)


def standardised(features: LabelledEmbeddings) -> tuple[Tensor, Tensor]:
    """Mean and one over deviation, by the formula: ten images' worth of the mean variance is mixed in."""
    x = features.embeddings.double()
    variance = x.var(0, correction=0)
    variance = (len(x) * variance + 10 * variance.mean()) / (len(x) + 10)
    return x.mean(0), variance.rsqrt()


def objective(features: LabelledEmbeddings, weight: Tensor, bias: Tensor, l2: float) -> Tensor:
    """The objective of raw weights, in float64."""
    scale = standardised(features)[1]
    loss = F.cross_entropy(features.embeddings.double() @ weight.T + bias, features.labels)
    return loss + l2 / 2 * (weight / scale).square().sum()


@pytest.mark.parametrize("l2", [10.0, 1e-1, 1e-3])
@pytest.mark.parametrize(("count", "width"), [(200, 12), (24, 40)])
def test_the_optimum_is_scikit_learns(l2: float, count: int, width: int) -> None:
    train = blobs(count, width=width)
    mean, scale = standardised(train)
    x = ((train.embeddings.double() - mean) * scale).numpy()
    theirs = LogisticRegression(C=1 / (l2 * count), tol=1e-10, max_iter=100_000).fit(x, train.labels.numpy())
    ours = linear_probe(train, num_classes=4, grid=(l2,))
    assert ours.l2 == l2
    weight = torch.from_numpy(theirs.coef_) * scale
    bias = torch.from_numpy(theirs.intercept_) - weight @ mean
    size = (weight / scale).abs().max().item()
    torch.testing.assert_close(ours.weight.double() / scale, weight / scale, atol=2e-3 * size, rtol=0)
    assert objective(train, ours.weight.double(), ours.bias.double(), l2) <= objective(train, weight, bias, l2) * (1 + 1e-5)
    probability = ours.logits(train.embeddings).softmax(1).double().numpy()
    np.testing.assert_allclose(probability, theirs.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize(("classes", "count", "width"), [(2, 60, 5), (3, 9, 30), (10, 500, 6)])
def test_nothing_pulls_any_more(classes: int, count: int, width: int) -> None:
    """The gradient of the objective is zero at the solution, in standardised terms."""
    train, l2 = blobs(count, classes, width=width), 1e-2
    probe = linear_probe(train, num_classes=classes, grid=(l2,))
    weight, bias = probe.weight.double().requires_grad_(), probe.bias.double().requires_grad_()
    slopes = torch.autograd.grad(objective(train, weight, bias, l2), (weight, bias))
    mean, scale = standardised(train)
    assert (((slopes[0] - slopes[1][:, None] * mean) * scale).abs()).max() < 1e-4
    assert slopes[1].abs().max() < 1e-4


def test_validation_chooses_and_then_teaches() -> None:
    train, val, test = blobs(40, width=60), blobs(200, width=60, seed=1), blobs(400, width=60, seed=2)
    probe = linear_probe(train, val, test, num_classes=4)
    assert [one.l2 for one in probe.tried] == list(GRID)
    best = max(one.accuracy.correct for one in probe.tried)
    chosen = next(one for one in probe.tried if one.l2 == probe.l2)
    assert chosen.accuracy.correct == best
    assert chosen.nll == min(one.nll for one in probe.tried if one.accuracy.correct == best)
    assert probe.val == chosen.accuracy
    assert probe.val.count == 200
    alone = linear_probe(train.and_those_of(val), None, test, num_classes=4, grid=(probe.l2,))
    torch.testing.assert_close(probe.weight, alone.weight)
    assert probe.train.count == 240
    assert probe.test == alone.test
    assert probe.test is not None
    assert probe.test.correct == int((probe.logits(test.embeddings).argmax(1) == test.labels).sum())
    for one in probe.tried[::5]:  # each was judged as a fit of its own would be
        fresh = linear_probe(train, None, val, num_classes=4, grid=(one.l2,))
        assert fresh.test is not None
        assert abs(fresh.test.correct - one.accuracy.correct) <= 1
        assert F.cross_entropy(fresh.logits(val.embeddings), val.labels).item() == pytest.approx(one.nll, rel=1e-2)


def test_where_accuracy_is_equal_likelihood_decides() -> None:
    easy = blobs(80, 3, spread=0.05)
    probe = linear_probe(easy, blobs(60, 3, spread=0.05, seed=1), num_classes=3)
    right = [one for one in probe.tried if one.accuracy.value == 1]
    assert len(right) > 3
    assert probe.l2 == min(right, key=lambda one: one.nll).l2


def test_it_comes_out_the_same_each_time() -> None:
    def fitted(seed: int = 0) -> Probe:
        return linear_probe(blobs(100), num_classes=4, seed=seed)

    one, two = fitted(), fitted()
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert one.tried == two.tried
    assert fitted(1).tried != one.tried


def test_the_parts_that_it_is_computed_in_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = blobs(150), blobs(50, seed=1)
    whole = linear_probe(train, val, num_classes=4)
    monkeypatch.setattr(module, "_CELLS", 7 * 12)
    parts = linear_probe(train, val, num_classes=4)
    assert parts.l2 == whole.l2
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-4, rtol=1e-3)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(0, 5))
def test_folds_are_dealt_evenly_and_leave_something_to_learn_from(labels: list[int], seed: int) -> None:
    truth = torch.tensor(labels)
    dealt = folds(truth, seed=seed)
    for label in set(labels):
        of_class = dealt[truth == label]
        if len(of_class) == 1:
            assert of_class.tolist() == [-1]
            continue
        counts = torch.bincount(of_class, minlength=FOLDS)
        assert counts.max() - counts.min() <= 1
    for fitted_to, judged_by in held_out(LabelledEmbeddings(torch.zeros(len(truth), 1), truth), seed=seed):
        assert set(fitted_to.labels.tolist()) == set(labels)
        assert len(judged_by)
        assert len(fitted_to) + len(judged_by) == len(truth)


def test_few_images_are_held_out_in_turn_and_many_once(monkeypatch: pytest.MonkeyPatch) -> None:
    few = linear_probe(blobs(100), num_classes=4)
    assert few.val.count == 100
    monkeypatch.setattr(module, "FOLDED", 100)
    assert linear_probe(blobs(100), num_classes=4).val.count == 20


def test_one_image_of_each_class() -> None:
    probe = linear_probe(blobs(4, spread=0.1), None, blobs(40, spread=0.1, seed=1), num_classes=4)
    assert probe.l2 == ALONE
    assert probe.tried == ()
    assert (probe.val.count, probe.train.value) == (0, 1.0)
    assert probe.test is not None
    assert probe.test.value > 0.9


def test_a_class_without_images_is_never_named() -> None:
    train = blobs(90, 3)
    absent = LabelledEmbeddings(train.embeddings, torch.tensor([1, 2, 5])[train.labels])
    probe = linear_probe(absent, num_classes=7)
    assert probe.weight.shape == (7, 12)
    assert set(probe.logits(100 * torch.randn(500, 12)).argmax(1).tolist()) <= {1, 2, 5}
    val = LabelledEmbeddings(train.embeddings[:30], torch.full((30,), 6))
    judged = linear_probe(absent, val, num_classes=7)
    assert judged.val.correct == 0
    assert all(np.isfinite(one.nll) for one in judged.tried)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    train = blobs(90, 3)
    train.embeddings[:, 4] = 7.0
    probe = linear_probe(train, num_classes=3)
    assert probe.weight.isfinite().all()
    assert probe.weight[:, 4].abs().max() < 1e-3
    nothing = linear_probe(LabelledEmbeddings(torch.ones(12, 5), torch.arange(12) % 3), num_classes=3)
    assert nothing.weight.isfinite().all()


def test_one_class_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        linear_probe(LabelledEmbeddings(torch.randn(5, 3), torch.zeros(5, dtype=torch.long)), num_classes=3)


def test_ill_conditioned_features_take_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for the principal axes: variances from 1 to 1e-6 along them, and still some ten steps for each penalty."""
    passes = 0
    real = torch.optim.LBFGS.step

    def counted(self: torch.optim.LBFGS, closure: object) -> object:
        nonlocal passes
        done = real(self, closure)  # type: ignore[arg-type]
        passes += self.state[self.param_groups[0]["params"][0]]["n_iter"]
        return done

    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    hidden = torch.randn(3000, 64, generator=generator)
    labels = (hidden[:, :8] + torch.randn(3000, 8, generator=generator)).argmax(1)
    train = LabelledEmbeddings(hidden * torch.logspace(0, -3, 64) @ mixing, labels)
    monkeypatch.setattr(torch.optim.LBFGS, "step", counted)
    linear_probe(train.at(torch.arange(2000)), train.at(torch.arange(2000, 3000)), num_classes=8)
    assert passes < 25 * (len(GRID) + 1)

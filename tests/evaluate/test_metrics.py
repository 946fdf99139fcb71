from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t
from sklearn.metrics import accuracy_score, log_loss, recall_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sk_confusion
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from vitrail.evaluate import Evaluation, confusion_matrix, score, topk_correct, wilson_interval
from vitrail.evaluate.intervals import Accuracy, mean_interval, t_quantile


def case(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed * 10_007 + count * 101 + classes)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.0
    return logits, labels


def scored(count: int, classes: int, seed: int = 0) -> Evaluation:
    logits, labels = case(count, classes, seed)
    return score(logits, labels, classes=[f"c{i}" for i in range(classes)])


@given(total=st.integers(1, 5000), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=100, deadline=None)
def test_wilson_is_scipys(total: int, share: float, level: float) -> None:
    correct = round(share * total)
    low, high = wilson_interval(correct, total, level=level)
    expected = binomtest(correct, total).proportion_ci(level, method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= low <= correct / total <= high <= 1


def test_wilson_at_its_ends() -> None:
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(0, 10)[1] == pytest.approx(0.27753, abs=1e-5)  # z² / (n + z²)
    assert wilson_interval(10, 10)[1] == 1
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="between 0 and the total"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="level"):
        wilson_interval(1, 2, level=1.0)


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (50, 3), (400, 10), (1000, 37)])
def test_against_torchmetrics_and_sklearn(count: int, classes: int) -> None:
    logits, labels = case(count, classes)
    result, every = scored(count, classes), list(range(classes))
    predicted = logits.argmax(1)
    assert result.count == count
    assert result.top1 == pytest.approx(accuracy_score(labels, predicted))
    assert result.top1 == pytest.approx(float(multiclass_accuracy(logits, labels, classes, average="micro")))
    assert result.nll == pytest.approx(log_loss(labels, logits.double().softmax(1), labels=every), rel=1e-5)
    assert torch.equal(result.confusion, multiclass_confusion_matrix(logits, labels, classes))
    assert (result.confusion.numpy() == sk_confusion(labels, predicted, labels=every)).all()
    if classes > 5:
        assert result.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every))
        theirs = multiclass_accuracy(logits, labels, classes, top_k=5, average="micro")
        assert result.top5 == pytest.approx(float(theirs))
    else:
        assert result.top5 == 1
    recall = recall_score(labels, predicted, labels=every, average=None, zero_division=math.nan)
    for index, each in enumerate(result.per_class):
        assert each.name == f"c{index}"
        assert each.count == int((labels == index).sum())
        assert each.accuracy == pytest.approx(recall[index], nan_ok=True)
        assert each.interval == wilson_interval(int(result.confusion[index, index]), each.count)


def test_top_k_with_fewer_classes_takes_all() -> None:
    logits, labels = case(20, 3)
    assert topk_correct(logits, labels, k=5).all()
    assert torch.equal(topk_correct(logits, labels, k=1), logits.argmax(1) == labels)


def test_a_model_that_says_nothing_is_not_right() -> None:
    """Equal logits are one guess, not a hit for every class, and top-1 agrees with the confusion matrix."""
    labels = torch.arange(10)
    result = score(torch.zeros(10, 10), labels, classes=[str(i) for i in range(10)])
    assert result.top1 == pytest.approx(0.1)
    assert result.top5 == pytest.approx(0.5)
    assert result.top1 * 10 == int(result.confusion.trace())


@given(count=st.integers(1, 60), classes=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_numbers_agree_with_each_other(count: int, classes: int, seed: int) -> None:
    result = scored(count, classes, seed)
    assert result.confusion.sum() == count
    assert int(result.confusion.trace()) == round(result.top1 * count)
    assert result.top1 <= result.top5
    assert result.top1_interval[0] <= result.top1 <= result.top1_interval[1]
    assert sum(each.count for each in result.per_class) == count
    assert result.nll >= 0


def test_half_precision_logits_are_judged_in_float32() -> None:
    logits, labels = case(200, 10)
    logits = logits.bfloat16()
    names = [str(i) for i in range(10)]
    assert score(logits, labels, classes=names).nll == score(logits.float(), labels, classes=names).nll


def test_a_class_without_images_and_logits_that_are_no_numbers_give_valid_json() -> None:
    logits, labels = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([2])
    result = score(logits, labels, classes=("a", "b", "c"))
    assert math.isnan(result.per_class[0].accuracy)
    assert result.per_class[0].interval == (0, 1)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["per_class"][0] == {"name": "a", "count": 0, "accuracy": None, "interval": [0, 1]}
    assert read["top1"] == 1
    assert score(logits * math.nan, labels, classes=("a", "b", "c")).to_dict()["nll"] is None


def test_no_images_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match="no images to evaluate") as caught:
        score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), classes=("a", "b", "c"))
    assert "\n" not in str(caught.value)


def test_confusion_rows_are_true_classes() -> None:
    matrix = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 2]), num_classes=3)
    assert matrix.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


def test_an_accuracy_knows_its_interval() -> None:
    accuracy = Accuracy(17, 20)
    assert accuracy.value == 0.85
    assert accuracy.interval == wilson_interval(17, 20)
    assert accuracy.to_dict() == {"correct": 17, "count": 20, "accuracy": 0.85, "interval": list(wilson_interval(17, 20))}
    nothing = Accuracy(0, 0)
    assert math.isnan(nothing.value)
    assert json.loads(json.dumps(nothing.to_dict(), allow_nan=False))["accuracy"] is None


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_t_quantile_is_scipys(level: float) -> None:
    for freedom in (*range(1, 30), 99, 500):
        assert t_quantile(level, freedom) == pytest.approx(t.ppf((1 + level) / 2, freedom), rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.sampled_from([0.8, 0.95]))
def test_the_interval_of_a_mean_is_scipys(values: list[float], level: float) -> None:
    spread = torch.tensor(values, dtype=torch.float64).std().item() / math.sqrt(len(values))
    low, high = mean_interval(values, level=level)
    if spread > 1e-9:
        expected = t.interval(level, len(values) - 1, loc=sum(values) / len(values), scale=spread)
        assert (low, high) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    else:
        assert high - low < 1e-6


def test_one_value_says_nothing_of_its_mean() -> None:
    assert mean_interval([0.3]) == (-math.inf, math.inf)
    assert mean_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))

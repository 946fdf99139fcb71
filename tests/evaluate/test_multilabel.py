from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.data.memory import FixedSplit
from vitrail.evaluate import evaluate, evaluate_labels, save_evaluation, score_labels, wilson_interval
from vitrail.evaluate.multilabel import average_precision, interval_of, micro_f1
from vitrail.settings import Preprocessing

CLASSES = ("sea", "sky", "sand")
GREY = Preprocessing(img_size=(8, 6), in_channels=1, mean=(0.3,), std=(0.4,))


def draw(count: int, *, seed: int = 0, share: float = 0.3, apart: float = 1.0, steps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Labels that three in ten images have, and logits that know something of them; in steps, so that some are equal."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 3, generator=generator) < share
    logits = torch.randn(count, 3, generator=generator) + apart * targets - apart / 2
    return (logits / steps).round() * steps if steps else logits, targets


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 999), st.sampled_from((0.0, 0.25, 2.0)), st.floats(0.05, 0.95))
def test_numbers_are_scikit_learns(count: int, seed: int, steps: float, share: float) -> None:
    logits, targets = draw(count, seed=seed, share=share, steps=steps)
    assume(targets.any())
    result = score_labels(logits, targets, classes=CLASSES)
    some = targets.any(0)
    expected = average_precision_score(targets[:, some].numpy(), logits[:, some].numpy(), average=None)
    found = [each.average_precision for each in result.per_class if each.count]
    assert found == pytest.approx(np.atleast_1d(expected).tolist(), abs=1e-9)
    assert result.mean_ap == pytest.approx(float(np.mean(expected)), abs=1e-9)
    assert [each.count for each in result.per_class] == targets.sum(0).tolist()
    assert result.f1 == pytest.approx(
        f1_score(targets.numpy(), (logits >= 0).numpy(), average="micro", zero_division=0), abs=1e-9
    )
    for value, (low, high) in ((result.mean_ap, result.mean_ap_interval), (result.f1, result.f1_interval)):
        assert 0 <= low <= value <= high <= 1


@pytest.mark.parametrize("steps", [0.0, 0.5])
def test_what_an_image_does_to_a_score_is_the_slope_of_its_weight(steps: float) -> None:
    logits, targets = draw(40, steps=steps)
    for k in range(3):
        value, influence = average_precision(logits[:, k], targets[:, k])
        assert influence.sum().item() == pytest.approx(0, abs=1e-12)
        for image in range(0, 40, 7):
            weights = np.ones(40)
            weights[image] += 1e-6
            moved = average_precision_score(targets[:, k].numpy(), logits[:, k].numpy(), sample_weight=weights)
            assert (moved - value) / 1e-6 == pytest.approx(influence[image].item(), abs=1e-5)
    value, influence = micro_f1(logits, targets)
    assert influence.sum().item() == pytest.approx(0, abs=1e-12)


def test_the_standard_error_is_the_bootstraps() -> None:
    logits, targets = draw(300)
    influence = average_precision(logits[:, 0], targets[:, 0])[1]
    rng = np.random.default_rng(0)
    again = []
    for _ in range(300):
        drawn = rng.integers(0, 300, 300)
        again.append(average_precision(logits[drawn, 0], targets[drawn, 0])[0])
    assert influence.square().sum().sqrt().item() == pytest.approx(np.std(again), rel=0.15)


def test_the_interval_holds_what_a_large_set_says() -> None:
    truth = score_labels(*draw(100_000, seed=1), classes=CLASSES)
    results = [score_labels(*draw(150, seed=seed), classes=CLASSES) for seed in range(2, 202)]
    for name in ("mean_ap", "f1"):
        held = [low <= getattr(truth, name) <= high for low, high in (getattr(each, f"{name}_interval") for each in results)]
        assert 0.9 <= np.mean(held) <= 0.99


def test_the_ends() -> None:
    targets = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 0]]).bool()
    perfect = score_labels((targets.float() - 0.5) * 4, targets, classes=("a", "b"))
    assert (perfect.mean_ap, perfect.f1) == (1.0, 1.0)
    assert perfect.mean_ap_interval == wilson_interval(2, 2), "two images that have a label say little"
    assert math.isnan(perfect.per_class[1].average_precision), "no image has it"
    assert perfect.per_class[1].interval == (0.0, 1.0)
    nothing = score_labels(torch.full((3, 2), -5.0), torch.zeros(3, 2).bool(), classes=("a", "b"))
    assert math.isnan(nothing.mean_ap)
    assert math.isnan(nothing.f1)
    assert nothing.to_dict()["mean_ap"] is None
    assert interval_of(math.nan, torch.zeros(3), most=3) == (0.0, 1.0)
    json.dumps(nothing.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="no images to evaluate"):
        score_labels(torch.zeros(0, 2), torch.zeros(0, 2).bool(), classes=("a", "b"))


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3))


def split_of(count: int, *, labelled: bool = True) -> FixedSplit:
    images = torch.randint(0, 256, (count, 1, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = FixedSplit(images, labels=torch.arange(count) % 3, names=[f"{i}.png" for i in range(count)])
    if labelled:
        split.multi_hot = torch.arange(count)[:, None] % torch.tensor([2, 3, 4]) == 0
        split.labels = torch.full((count,), -1)
    return split


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_split_is_scored_at_any_batch_size(batch_size: int, tmp_path: Path) -> None:
    model, split = small_model().train(), split_of(25)
    result = evaluate_labels(model, split, preprocessing=GREY, classes=CLASSES, batch_size=batch_size, device="cpu")
    assert model.training
    assert split.multi_hot is not None
    with torch.no_grad():
        logits = model.eval()(normalise(split.images, GREY))
    expected = score_labels(logits, split.multi_hot, classes=CLASSES)
    assert result.count == 25
    assert result.mean_ap == pytest.approx(expected.mean_ap, abs=1e-6)
    assert result.bce == pytest.approx(expected.bce, rel=1e-5)
    assert result.headline == ("mAP", result.mean_ap, result.mean_ap_interval)
    assert result.figures() == {"map": result.mean_ap, "f1": result.f1, "bce": result.bce}
    assert save_evaluation(result, tmp_path, data="beach", split="test") == (
        tmp_path / "evaluation.json",
        tmp_path / "predictions.npz",
    )
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert numbers == {"data": "beach", "split": "test", **result.to_dict()}


def test_each_kind_of_split_has_its_scores() -> None:
    with pytest.raises(ValueError, match="may have several labels, so there is no accuracy; use evaluate_labels"):
        evaluate(small_model(), split_of(4), preprocessing=GREY, classes=CLASSES, device="cpu")
    with pytest.raises(ValueError, match="has one class; use evaluate"):
        evaluate_labels(small_model(), split_of(4, labelled=False), preprocessing=GREY, classes=CLASSES, device="cpu")

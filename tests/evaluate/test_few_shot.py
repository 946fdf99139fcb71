from __future__ import annotations

import json
import math

import pytest
import torch

from vitrail.evaluate import wilson_interval
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.few_shot import Mean, draw_shots, few_shot
from vitrail.evaluate.intervals import mean_interval
from vitrail.evaluate.knn import knn
from vitrail.evaluate.probe import linear_probe


def blobs(count: int, *, seed: int = 0) -> LabelledEmbeddings:
    centres = torch.randn(4, 10, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return LabelledEmbeddings(centres[labels] + 0.8 * torch.randn(count, 10, generator=generator), labels)


TRAIN, TEST = blobs(80), blobs(200, seed=1)


def test_a_draw_has_so_many_of_each_class_and_fewer_are_among_more() -> None:
    few, more = draw_shots(TRAIN.labels, 2, seed=0, draw=3), draw_shots(TRAIN.labels, 5, seed=0, draw=3)
    assert TRAIN.labels[few].bincount().tolist() == [2] * 4
    assert TRAIN.labels[more].bincount().tolist() == [5] * 4
    assert set(few.tolist()) < set(more.tolist())
    assert torch.equal(few, draw_shots(TRAIN.labels, 2, seed=0, draw=3))
    others = [draw_shots(TRAIN.labels, 2, seed=seed, draw=draw) for seed, draw in ((0, 4), (1, 3))]
    assert not any(torch.equal(few, other) for other in others)


def test_what_is_measured_on_each_draw() -> None:
    one, five = few_shot(TRAIN, TEST, shots=(1, 5), draws=2, num_classes=4, seed=7)
    assert (one.shots, five.shots) == (1, 5)
    assert len(set(one.probe.values)) == 2, "another draw"
    assert five.probe.value > one.probe.value
    few = TRAIN.at(draw_shots(TRAIN.labels, 5, seed=7, draw=1))
    assert five.knn.values[1] == knn(few, TEST).value
    again = linear_probe(few, None, TEST, num_classes=4, grid=[10.0**power for power in range(1, -7, -1)], seed=7)
    assert again.test is not None
    assert five.probe.values[1] == again.test.value
    assert few_shot(TRAIN, TEST, shots=(1,), draws=2, num_classes=4, seed=7) == (one,)


def test_classes_with_fewer_images_are_named() -> None:
    kept = (TRAIN.labels != 2) | (torch.arange(80) < 12)
    two, five = few_shot(TRAIN.at(kept), TEST, shots=(2, 5), draws=1, num_classes=5)
    assert two.short == (4,), "a class without any"
    assert five.short == (2, 4)


def test_the_interval_is_that_of_the_mean_over_draws() -> None:
    mean = Mean((0.5, 0.6, 0.75))
    assert mean.value == pytest.approx(0.61666667)
    assert mean.interval == pytest.approx(mean_interval((0.5, 0.6, 0.75)))
    assert mean.interval != wilson_interval(37, 60)
    assert Mean((0.2, 1.0)).interval == (0.0, 1.0)
    assert Mean((0.4,)).interval == (0.0, 1.0), "one draw says nothing of others"
    read = json.loads(json.dumps(Mean((0.4,)).to_dict(), allow_nan=False))
    assert read == {"accuracy": 0.4, "interval": [0, 1], "draws": [0.4]}
    assert math.isclose(Mean((0.3, 0.3)).interval[1], 0.3)


@pytest.mark.parametrize(("shots", "draws"), [((0, 1), 3), ((), 3), ((1,), 0)])
def test_less_than_one_is_an_error_of_one_line(shots: tuple[int, ...], draws: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        few_shot(TRAIN, TEST, shots=shots, draws=draws, num_classes=4)

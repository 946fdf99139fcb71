"""Learning curves: which doubling is the last, and what it brought."""

from __future__ import annotations

import pytest
import scipy.stats

from vitrail.evaluate.learning_curve import last_doubling, learning_curve
from vitrail.evaluate.paired import Paired


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.25, 0.5, 1.0], (0.5, 1.0)),
        ([1.0, 0.25, 0.5], (0.5, 1.0)),
        ([0.1, 0.3, 0.9, 1.0], (0.3, 1.0)),
        ([0.01, 0.02, 0.04], (0.02, 0.04)),
        ([0.9, 1.0], (0.9, 1.0)),
    ],
)
def test_the_last_doubling(shares: list[float], expected: tuple[float, float]) -> None:
    assert last_doubling(shares) == expected


def test_one_share_is_no_curve() -> None:
    with pytest.raises(ValueError, match="at least two"):
        last_doubling([1.0])


def test_the_gain_is_welchs_difference() -> None:
    small, large = [0.80, 0.81, 0.79], [0.85, 0.86, 0.855]
    curve = learning_curve({1.0: large, 0.25: [0.5], 0.5: small})
    theirs = scipy.stats.ttest_ind(large, small, equal_var=False).confidence_interval(0.95)
    assert list(curve.accuracies) == [0.25, 0.5, 1.0]
    assert curve.gain == pytest.approx((theirs.low + theirs.high) / 2)
    assert curve.interval[0] <= theirs.low < theirs.high <= curve.interval[1]  # degrees of freedom are rounded down
    assert curve.conclusion.startswith("from 50 % to 100 % of the training images: +5.50 points of accuracy (95 % interval +")
    assert curve.conclusion.endswith("over 3 seeds); more images of this kind would help")


def test_what_is_not_shown_is_not_claimed() -> None:
    assert "no gain is shown" in learning_curve({0.5: [0.8, 0.9], 1.0: [0.82, 0.91]}).conclusion
    assert "made it worse" in learning_curve({0.5: [0.90, 0.901], 1.0: [0.7, 0.701]}, "model.depth=6").conclusion
    alone = learning_curve({0.5: [0.8], 1.0: [0.9]})
    assert "no gain is shown" in alone.conclusion
    assert alone.to_dict()["interval"] == [None, None]


def test_one_seed_each_is_compared_on_the_images() -> None:
    paired = Paired(images=100, only_first=2, only_second=12, difference=0.1, interval=(0.04, 0.17), p_value=0.01)
    curve = learning_curve({0.5: [0.8], 1.0: [0.9]}, paired=paired)
    assert (curve.gain, curve.interval, curve.over) == (0.1, (0.04, 0.17), "the images, of one seed")
    assert curve.to_dict()["conclusion"] == curve.conclusion

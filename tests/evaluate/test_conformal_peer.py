"""Conformal sets beside MAPIE's, which draws the same uniform numbers from a seed of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import RAPSConformityScore
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from vitrail.evaluate.conformal import class_scores, threshold

COVERAGES = [0.5, 0.8, 0.9, 0.95]
SEED = 3


class Softmax(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose features are its logits."""

    def __init__(self, classes: int = 2) -> None:
        self.classes = classes

    @property
    def classes_(self) -> np.ndarray:
        return np.arange(self.classes)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, logits: np.ndarray, labels: np.ndarray) -> Softmax:
        return self

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        return torch.from_numpy(logits).softmax(1).numpy()

    def predict(self, logits: np.ndarray) -> np.ndarray:
        best: np.ndarray = logits.argmax(1)
        return best


def drawn(images: int, classes: int, seed: int, *, absent: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits in float64 and labels; the class `absent` is no image's."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    chances = logits.softmax(1)
    if absent is not None:
        chances[:, absent] = 0
    return logits, torch.multinomial(chances, 1, generator=generator)[:, 0]


def uniform(count: int) -> Tensor:
    """MAPIE subtracts u p of the cumulative probability, we add u p to what comes before: our u is one minus theirs."""
    return torch.from_numpy(1 - np.random.RandomState(SEED).uniform(size=count))


@pytest.mark.filterwarnings("ignore:.*your conformalization dataset has less labels")
@pytest.mark.parametrize(("images", "classes", "absent"), [(900, 10, None), (73, 3, None), (500, 7, 4), (200, 4, None)])
def test_scores_thresholds_and_sets_are_those_of_aps(images: int, classes: int, absent: int | None) -> None:
    (logits, labels), (new, _) = drawn(images, classes, 0, absent=absent), drawn(400, classes, 1)
    theirs = SplitConformalClassifier(
        Softmax(classes), confidence_level=COVERAGES, conformity_score="aps", prefit=True, random_state=SEED
    )
    theirs.conformalize(logits.numpy(), labels.numpy())
    found = class_scores(logits, penalty=0.0, uniform=uniform(images)).gather(1, labels[:, None])[:, 0]
    np.testing.assert_allclose(found.numpy(), theirs.conformity_scores.ravel(), atol=1e-6)
    thresholds = [threshold(tuple(found.sort().values.tolist()), coverage) for coverage in COVERAGES]
    _, sets = theirs.predict_set(new.numpy(), conformity_score_params={"include_last_label": "randomized"})
    np.testing.assert_allclose(thresholds, theirs._conformity_score.quantiles_, atol=1e-6)
    scores = class_scores(new, penalty=0.0, uniform=uniform(400))
    for place, most in enumerate(thresholds):
        assert (scores <= most).numpy().tolist() == sets[:, :, place].tolist()


@pytest.mark.parametrize(("penalty", "free_ranks"), [(0.01, 5), (0.2, 1), (0.0, 3)])
def test_the_penalty_is_that_of_raps(penalty: float, free_ranks: int) -> None:
    logits, labels = drawn(300, 12, 2)
    probabilities = logits.softmax(1).numpy()
    cumulative, ranks = RAPSConformityScore.get_true_label_cumsum_proba(labels.numpy(), probabilities, np.arange(12))
    right = probabilities[np.arange(300), labels.numpy()][:, None]
    plain = cumulative - (1 - uniform(300).numpy()[:, None]) * right
    expected = RAPSConformityScore._regularize_conformity_score(np.array([free_ranks]), penalty, plain, ranks)
    found = class_scores(logits, penalty=penalty, free_ranks=free_ranks, uniform=uniform(300)).gather(1, labels[:, None])
    np.testing.assert_allclose(found.numpy(), expected[:, :, 0], atol=1e-6)

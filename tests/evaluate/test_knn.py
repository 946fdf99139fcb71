from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vitrail.evaluate import knn as module
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.knn import knn, predict_knn


def blobs(count: int, classes: int, *, width: int = 16, seed: int = 0, spread: float = 1.5) -> LabelledEmbeddings:
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(classes))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return LabelledEmbeddings(centres[labels] + spread * torch.randn(count, width, generator=generator) + 0.5, labels)


TRAIN, TEST = blobs(300, 7), blobs(120, 7, seed=1)


@pytest.mark.parametrize("k", [1, 3, 20, 300])
def test_one_vote_each_is_scikit_learns(k: int) -> None:
    theirs = KNeighborsClassifier(k, metric="cosine").fit(TRAIN.embeddings.double(), TRAIN.labels)
    expected = theirs.predict(TEST.embeddings.double())
    assert predict_knn(TRAIN, TEST.embeddings, k=k, temperature=None).tolist() == expected.tolist()
    accuracy = knn(TRAIN, TEST, k=k, temperature=None)
    assert (accuracy.correct, accuracy.count) == ((expected == TEST.labels.numpy()).sum(), 120)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_weights_fall_with_the_distance(temperature: float) -> None:
    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / temperature)

    theirs = KNeighborsClassifier(20, metric="cosine", weights=weights).fit(TRAIN.embeddings.double(), TRAIN.labels)
    ours = predict_knn(TRAIN, TEST.embeddings, temperature=temperature)
    assert ours.tolist() == theirs.predict(TEST.embeddings.double()).tolist()


def test_an_image_does_not_vote_for_itself() -> None:
    few = blobs(40, 3, seed=5)
    expected = [int(predict_knn(few.at(torch.arange(40) != i), few.embeddings[i : i + 1], k=5)) for i in range(40)]
    assert predict_knn(few, few.embeddings, k=5, leave_out=True).tolist() == expected
    assert knn(few, k=5).correct == sum(a == b for a, b in zip(expected, few.labels.tolist(), strict=True))
    assert knn(few, few, k=1).value == 1, "where it may, it does"


def test_the_parts_that_it_is_computed_in_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, alone = predict_knn(TRAIN, TEST.embeddings), predict_knn(TRAIN, TRAIN.embeddings, leave_out=True)
    monkeypatch.setattr(module, "_CELLS", 7 * len(TRAIN))
    assert torch.equal(predict_knn(TRAIN, TEST.embeddings), whole)
    assert torch.equal(predict_knn(TRAIN, TRAIN.embeddings, leave_out=True), alone)


def test_a_low_temperature_is_the_nearest_and_no_overflow() -> None:
    nearest = predict_knn(TRAIN, TEST.embeddings, k=1)
    assert torch.equal(predict_knn(TRAIN, TEST.embeddings, temperature=1e-4), nearest)


def test_lengths_do_not_count() -> None:
    longer = LabelledEmbeddings(TRAIN.embeddings * torch.linspace(0.1, 9, 300)[:, None], TRAIN.labels)
    assert torch.equal(predict_knn(longer, 3 * TEST.embeddings), predict_knn(TRAIN, TEST.embeddings))


def test_ends() -> None:
    nobody = TEST.at(torch.zeros(120, dtype=torch.bool))
    assert knn(TRAIN, nobody).count == 0
    assert knn(TRAIN.at(torch.tensor([0])), TEST).count == 120
    with pytest.raises(ValueError, match="k 0 must be at least 1"):
        knn(TRAIN, TEST, k=0)
    with pytest.raises(ValueError, match="no neighbours"):
        knn(nobody, TEST)
    with pytest.raises(ValueError, match="no neighbours"):
        knn(TRAIN.at(torch.tensor([0])))

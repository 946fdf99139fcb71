"""Scores of a model without a head, how they are printed, and the neighbours that may not be the images themselves."""

from __future__ import annotations

import numpy as np
import torch

from vitrail.data.memory import FixedSplit
from vitrail.evaluate.embedding import EmbeddingScores, evaluate_embedding, has_classes
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.metrics import Scores, headline_text, score
from vitrail.models import ViT
from vitrail.settings import Preprocessing

VIEW = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.25,))
CPU = torch.device("cpu")


def split(labels: list[int], name: str) -> FixedSplit:
    """Noise: what a neighbour says of an image is right by chance."""
    rng = np.random.default_rng(len(name))
    images = torch.from_numpy(rng.integers(0, 256, (len(labels), 1, 8, 8), dtype=np.uint8))
    return FixedSplit(images, labels=torch.tensor(labels, dtype=torch.long), names=[f"{name}/{i}" for i in range(len(labels))])


def model() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=16, depth=1, num_heads=2, num_classes=0)


def test_images_are_not_their_own_neighbours() -> None:
    one = split([0, 1] * 20, "train")
    alone = evaluate_embedding(model(), one, preprocessing=VIEW, device=CPU)
    with_itself = evaluate_embedding(model(), one, known=one, preprocessing=VIEW, device=CPU)
    assert with_itself == alone
    assert alone.knn is not None
    assert alone.knn.value < 1, "each image would find itself"
    other = evaluate_embedding(model(), split([0, 1] * 20, "val"), known=one, preprocessing=VIEW, device=CPU)
    assert other.knn is not None
    assert other.knn.count == 40


def test_classes_are_two_at_least() -> None:
    assert has_classes(split([0, 1], "a"))
    assert not has_classes(split([1, 1], "a"))
    assert not has_classes(split([-1, -1], "a"))
    assert not has_classes(split([], "a"))
    one = evaluate_embedding(model(), split([0], "a"), preprocessing=VIEW, device=CPU)
    assert (one.count, one.knn, one.effective_rank, one.uniformity) == (1, None, 1.0, None)
    two = evaluate_embedding(model(), split([0, 0], "a"), preprocessing=VIEW, device=CPU)
    assert two.width == 16
    assert two.uniformity is not None
    assert two.figures()["uniformity"] == two.to_dict()["uniformity"] == two.uniformity.value


def test_a_headline_is_printed_in_its_unit() -> None:
    scores = EmbeddingScores(40, Accuracy(30, 40), 12.345, (11.0, 13.5))
    assert isinstance(scores, Scores)
    assert scores.figures() == {"knn_accuracy": 0.75, "effective_rank": 12.345}
    assert headline_text(scores, decimals=1) == ("knn accuracy", "75.0%", "59.8%", "85.8%")
    without = EmbeddingScores(40, None, 12.345, (11.0, 13.5))
    assert headline_text(without, decimals=1) == ("effective rank", "12.3", "11.0", "13.5")
    labelled = score(torch.eye(4), torch.tensor([0, 1, 2, 0]), classes="abcd")
    assert headline_text(labelled, decimals=2)[:2] == ("accuracy", "75.00%")

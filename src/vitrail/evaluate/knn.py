"""k-nearest-neighbour classification of frozen features, without training."""

# N images to classify · M images that are known · E embedding · K classes

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.intervals import Accuracy

NEIGHBOURS, TEMPERATURE = 20, 0.07  # Caron et al. 2021 (DINO), appendix F
_CELLS = 2**25  # similarities at once: 128 MiB


def knn(
    train: LabelledEmbeddings,
    test: LabelledEmbeddings | None = None,
    *,
    k: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> Accuracy:
    """Measure k-NN accuracy on the test images, with the training images as neighbours.

    Without `test`, each training image is classified by the others.
    """
    right = knn_right(train, test, k=k, temperature=temperature, device=device)
    return Accuracy(int(right.sum()), len(right))


def knn_right(
    train: LabelledEmbeddings,
    test: LabelledEmbeddings | None = None,
    *,
    k: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> Bool[Tensor, " N"]:
    """Find which of the images of `knn` are classified correctly."""
    asked = train if test is None else test
    predicted = predict_knn(train, asked.embeddings, k=k, temperature=temperature, device=device, leave_out=test is None)
    return predicted == asked.labels


def predict_knn(
    train: LabelledEmbeddings,
    embeddings: Float[Tensor, "N E"],
    *,
    k: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
    device: torch.device | str = "cpu",
    leave_out: bool = False,
) -> Int64[Tensor, " N"]:
    """Predict classes by a vote of the k nearest neighbours in cosine similarity.

    Each vote has weight exp(similarity / temperature), or 1 without `temperature`. A tie goes to the class of the lowest
    number.

    k beyond the number of training images takes all. With `leave_out`, the embeddings are those of the training images, and
    no image votes for itself. Raises ValueError for k below 1 and for no training images.
    """
    if k < 1:
        raise ValueError(f"k {k} must be at least 1 neighbour")
    if len(train) <= leave_out:
        raise ValueError(f"{len(train)} training images have no neighbours to ask; give some")
    labels, classes = train.labels.to(device), int(train.labels.max()) + 1
    predicted = []
    for similarity, nearest in nearest_neighbours(train.embeddings, embeddings, k=k, device=device, leave_out=leave_out):
        weights = vote_weights(similarity, temperature)
        votes = torch.zeros(len(nearest), classes, device=nearest.device).scatter_add_(1, labels[nearest], weights)
        predicted.append(votes.argmax(1).cpu())
    return torch.cat(predicted) if predicted else torch.zeros(0, dtype=torch.long)


def nearest_neighbours(
    known: Float[Tensor, "M E"],
    embeddings: Float[Tensor, "N E"],
    *,
    k: int,
    device: torch.device | str = "cpu",
    leave_out: bool = False,
) -> Iterator[tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]]:
    """Yield cosine similarities and indexes of the k nearest known images, from near to far, for blocks of the embeddings.

    A block is one matrix product of at most 128 MiB: time N · M · E, and memory (N + M) · E beside the block. k beyond the
    number of known images takes all. With `leave_out`, the embeddings are the known ones, and no image is its own neighbour.
    """
    known = F.normalize(known.to(device), dim=1)
    first, count = 0, min(k, len(known) - leave_out)
    for part in embeddings.split(max(1, _CELLS // len(known))):
        similarity = F.normalize(part.to(device), dim=1) @ known.T  # (n, M)
        if leave_out:
            similarity[torch.arange(len(part)), torch.arange(first, first + len(part))] = -torch.inf
        nearest = similarity.topk(count, dim=1)
        yield nearest.values, nearest.indices
        first += len(part)


def vote_weights(similarity: Float[Tensor, "n k"], temperature: float | None = TEMPERATURE) -> Float[Tensor, "n k"]:
    """Return the weights exp(similarity / temperature) of neighbours, or 1 without `temperature`, relative to the nearest."""
    if temperature is None:
        return torch.ones_like(similarity)
    return ((similarity - similarity[:, :1]) / temperature).exp()  # exp(1 / temperature) may be no float

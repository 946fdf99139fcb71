"""Findings by the frozen features of a model: near duplicates, label suspects, images unlike all others.

Every image passes through the model once. The search for neighbours is exact, in blocks of one matrix product: N² · E
multiplications, and memory N · E.
"""

# N images · E embedding · K classes · k neighbours

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.check.jumps import before_jump
from vitrail.data.sources import Source
from vitrail.evaluate.features import extract
from vitrail.evaluate.knn import nearest_neighbours, vote_weights
from vitrail.models.device import pick_device
from vitrail.settings import DataConfig
from vitrail.weights.load import load

NEIGHBOURS = 50
"""Neighbours that vote on a label; fewer, down to `FEWEST`, where a class has less than four times as many images."""
FEWEST = 5
SUSPECT = 7.0
"""Score from which a label is a suspect: log of the odds of the neighbours' class against the label, and of the rarity of the
confusion. Of Fashion-MNIST with 5 % of the labels flipped, 85 % of those above are flipped ones (dev/LOG.md)."""
FAR_NEIGHBOUR = 10
"""Number of the neighbour whose distance says how unlike all others an image is."""
UNLIKE = 3.5
"""Deviations (of the logarithm of that distance, by the median) from which an image is unlike all others."""
MAJORITY = 0.5
"""Least share of the votes for the class that is suggested."""
RELIABLE = 0.8
"""Least agreement of a vote with the labels: neighbours of weak features say little, however many they are."""
_SMALL = 1e-6
_COMPARED = 20  # images from which an agreement is taken
_SPARE = 10  # neighbours beyond those that vote: near duplicates do not
_NEAREST = 10  # neighbours among which near duplicates are looked for
_LEAST_SPREAD = 0.1  # of the logarithm of distances: equal distances deviate by nothing
_FLOOR = 0.01  # share of votes of a class without any


@dataclass(frozen=True, eq=False)
class SetEmbeddings:
    """Embeddings of the images of all splits, by path."""

    paths: tuple[str, ...]
    embeddings: Float[Tensor, "N E"]
    similarity: Float[Tensor, "N k"]
    """Cosine similarity of the nearest images, from near to far."""
    neighbours: Int64[Tensor, "N k"]
    notes: tuple[str, ...] = ()
    """Splits without embeddings, and why."""


class Suspect(NamedTuple):
    """An image whose neighbours have another label."""

    number: int
    label: int
    suggested: int
    share: float
    """Share of the votes for the suggested label."""
    agreement: float
    """Share of the images with as many votes for that label, or more, that have it."""
    score: float
    neighbours: tuple[int, ...]
    """Nearest images with the suggested label."""


class Unlike(NamedTuple):
    """An image that is far from all others."""

    number: int
    distance: float
    """Cosine distance of the tenth nearest image."""
    typical: float
    """Median of that distance over all images."""
    deviations: float


def embed_all(weights: str | Path, source: Source, *, batch_size: int = 64, device: str = "auto") -> SetEmbeddings:
    """Compute the embeddings of all images, and the nearest neighbours of each. Unreadable images are left out.

    Raises ValueError for weights that do not load, and for images that the model does not take.
    """
    where = pick_device(device)
    model = load(str(weights)).to(where)
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise ValueError(f"{weights} has random weights, whose features say nothing; give a run, a file or a Hub id")
    paths, embeddings, notes = list[str](), [], list[str]()
    for name in source.splits:
        try:
            split = source.load(name, preprocessing=preprocessing, cfg=DataConfig(max_bad=1.0, memory_gb=0))
        except ValueError as error:  # such as a class without a readable image, which is a finding of another part
            notes.append(f"no features of {name}: {error}")
            continue
        features = extract(model, split, preprocessing=preprocessing, batch_size=batch_size, device=where)
        skipped = {item.path for item in split.skipped}
        paths += [path for path in split.names if path not in skipped]
        embeddings.append(features.embeddings)
    joined = torch.cat(embeddings) if embeddings else torch.zeros(0, 1)
    return neighbours_of(tuple(paths), joined, device=where, notes=tuple(notes))


def neighbours_of(
    paths: tuple[str, ...], embeddings: Float[Tensor, "N E"], *, device: torch.device | str, notes: tuple[str, ...] = ()
) -> SetEmbeddings:
    """Find the nearest images of each image. There are none for a single one."""
    if len(embeddings) < 2:
        none = torch.zeros(len(embeddings), 0)
        return SetEmbeddings(paths, embeddings, none, none.long(), notes)
    count = min(max(NEIGHBOURS, FAR_NEIGHBOUR) + _SPARE, len(embeddings) - 1)
    blocks = list(nearest_neighbours(embeddings, embeddings, k=count, device=device, leave_out=True))
    similarity, neighbours = (torch.cat([block[part].cpu() for block in blocks]) for part in (0, 1))
    return SetEmbeddings(paths, embeddings, similarity, neighbours, notes)


def close_pairs(features: SetEmbeddings) -> dict[tuple[str, str], float]:
    """Return the pairs of paths (in order) whose embeddings are much closer than those of any third image: their similarity."""
    images = len(features.paths)
    if images < 3:
        return {}
    distance = (1 - features.similarity[:, :_NEAREST]).clamp_min(0)
    first = torch.arange(images)[:, None].expand_as(distance).flatten().numpy()
    second, values = features.neighbours[:, :_NEAREST].flatten().numpy(), distance.flatten().numpy()
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, at = np.unique(low * images + high, return_index=True)
    nearest = float(distance[:, 0].median())
    kept = before_jump(low[at], high[at], values[at], images=images, largest=nearest, unrelated=nearest).sure
    return {_in_order(features.paths[low[i]], features.paths[high[i]]): 1 - float(values[i]) for i in at[kept]}


def _in_order(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one <= other else (other, one)


def find_label_suspects(
    features: SetEmbeddings,
    labels: Int64[np.ndarray, " N"],
    groups: Sequence[int],
    classes: int,
    *,
    least: float = SUSPECT,
) -> list[Suspect]:
    """Find images whose neighbours carry another label: leave-one-out k-NN, without images of the same group (near duplicates).

    The score compares the votes for the neighbours' class with those for the label, and is higher where images of that class
    seldom carry that label: shirts are often called T-shirts, and never sneakers. Suspects have a score of `least` or more, and
    votes that agree with most labels elsewhere (`RELIABLE`).
    """
    y, group = torch.from_numpy(labels), torch.tensor(list(groups))
    count = int(np.clip(len(y) / max(1, classes) / 4, FEWEST, NEIGHBOURS))
    votes = torch.zeros(len(y), classes)
    weights = vote_weights(features.similarity)
    weights = weights.masked_fill(group[features.neighbours] == group[:, None], 0.0)
    rank = (weights > 0).cumsum(1)
    weights = weights.masked_fill(rank > count, 0.0)
    votes.scatter_add_(1, y[features.neighbours], weights)
    share = votes / votes.sum(1, keepdim=True).clamp_min(_SMALL)
    own = share.gather(1, y[:, None])[:, 0]
    best, suggested = share.scatter(1, y[:, None], -1.0).max(1)
    confusion = torch.ones(classes, classes)  # row: the neighbours' class, column: the label; one image more in each
    _, members, sizes = group.unique(return_inverse=True, return_counts=True)
    confusion.index_put_((share.argmax(1), y), 1 / sizes[members], accumulate=True)  # copies count as one image
    rarity = -(confusion / confusion.sum(1, keepdim=True))[suggested, y].log()
    score = ((best + _FLOOR) / (own + _FLOOR)).log() + rarity
    agreement = _agreement(share, y, 1 / sizes[members])
    found = []
    for index in torch.where((score >= least) & (best >= MAJORITY) & (agreement >= RELIABLE))[0].tolist():
        voting = features.neighbours[index][(weights[index] > 0) & (y[features.neighbours[index]] == suggested[index])]
        found.append(
            Suspect(
                index,
                int(y[index]),
                int(suggested[index]),
                float(best[index]),
                float(agreement[index]),
                float(score[index]),
                tuple(voting[:3].tolist()),
            )
        )
    return sorted(found, key=lambda suspect: -suspect.score)


def _agreement(share: Float[Tensor, "N K"], labels: Int64[Tensor, " N"], weights: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Share of the images, voted for the same class by as large a share or a larger one, whose label is that class.

    At least `_COMPARED` images with the largest shares are compared, where a class has as many.
    """
    top, voted = share.max(1)
    agreement = torch.zeros(len(labels))
    for label in voted.unique().tolist():
        at = torch.where(voted == label)[0]
        at = at[top[at].argsort(descending=True)]
        shares = (weights[at] * (labels[at] == label)).cumsum(0) / weights[at].cumsum(0)
        least = min(_COMPARED, len(at)) - 1
        shares[:least] = shares[least]
        agreement[at] = shares
    return agreement


def find_unlike_others(features: SetEmbeddings) -> list[Unlike]:
    """Find images that are far from their tenth nearest neighbour, by the median and its absolute deviation."""
    far = min(FAR_NEIGHBOUR, features.similarity.shape[1]) - 1
    distance = (1 - features.similarity[:, far]).clamp_min(_SMALL)
    logs = distance.log()
    middle = logs.median()
    spread = (1.4826 * (logs - middle).abs().median()).clamp_min(_LEAST_SPREAD)
    deviations = (logs - middle) / spread
    found = [
        Unlike(index, float(distance[index]), math.exp(float(middle)), float(deviations[index]))
        for index in torch.where(deviations > UNLIKE)[0].tolist()
    ]
    return sorted(found, key=lambda item: -item.deviations)

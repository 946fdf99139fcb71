"""Scores of frozen embeddings, without a head: k-NN accuracy, if images have classes, effective rank and uniformity."""

# N images · B batch · C channels · H W image · E embedding

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Split
from vitrail.data.draws import permutation
from vitrail.data.subset import Subset
from vitrail.evaluate.effective_rank import effective_rank, effective_rank_interval
from vitrail.evaluate.evaluate import ALONE, Among, over_batches, require_finite
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.intervals import Accuracy, Interval, interval_from
from vitrail.evaluate.knn import knn_right
from vitrail.evaluate.metrics import SHARE, Direction, Headline
from vitrail.evaluate.uniformity import Uniformity, uniformity
from vitrail.models.backbone import Backbone
from vitrail.settings import Preprocessing

KNOWN_IMAGES = 5000
"""Maximum number of training images among which k-NN looks for neighbours: each evaluation embeds them again."""


@dataclass(frozen=True)
class EmbeddingScores:
    """Quality of frozen embeddings. k-NN accuracy and rank are better when higher, uniformity when lower."""

    count: int
    """Number of images."""
    knn: Accuracy | None
    """Share of images that their neighbours classify correctly; None without labels of two or more classes."""
    effective_rank: float
    """Dimensions that the embeddings use, from 1 to their width."""
    effective_rank_interval: Interval
    """Interval at 95 %, by a jackknife."""
    width: int = 0
    """Dimensions of an embedding; 0 where it is not known."""
    uniformity: Uniformity | None = None
    """Uniformity on the sphere (Wang & Isola 2020); None for one image."""
    knn_right: Bool[Tensor, " N"] | None = field(default=None, compare=False, repr=False)
    """Images that are right in `knn`, in the order of the split; None in scores read from a file."""

    @property
    def headline(self) -> Headline:
        """k-NN accuracy, or without labels the effective rank."""
        if self.knn is not None:
            return Headline("knn_accuracy", self.knn.value, self.knn.interval)
        return Headline("effective_rank", self.effective_rank, self.effective_rank_interval)

    @property
    def unit(self) -> str:
        """Unit of the headline."""
        return "dimensions" if self.knn is None else SHARE

    @property
    def direction(self) -> Direction:
        """Higher accuracy, and higher rank, is better."""
        return "higher"

    def figures(self) -> dict[str, float]:
        """Return scores by name, for the log."""
        accuracy = {} if self.knn is None else {"knn_accuracy": self.knn.value}
        spread = {} if self.uniformity is None else {"uniformity": self.uniformity.value}
        return {**accuracy, "effective_rank": self.effective_rank, **spread}

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        name, value, interval = self.headline
        return {
            "count": self.count,
            "headline": {"name": name, "value": value, "interval": list(interval), "unit": self.unit, "better": self.direction},
            "knn": None if self.knn is None else self.knn.to_dict(),
            "effective_rank": self.effective_rank,
            "effective_rank_interval": list(self.effective_rank_interval),
            "width": self.width,
            "uniformity": None if self.uniformity is None else self.uniformity.value,
            "uniformity_interval": None if self.uniformity is None else list(self.uniformity.interval),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EmbeddingScores:
        """Restore what `to_dict` wrote."""
        spread = values["uniformity"]
        return cls(
            count=values["count"],
            knn=None if values["knn"] is None else Accuracy.from_dict(values["knn"]),
            effective_rank=values["effective_rank"],
            effective_rank_interval=interval_from(values["effective_rank_interval"]),
            width=values["width"],
            uniformity=None if spread is None else Uniformity(spread, interval_from(values["uniformity_interval"])),
        )


def evaluate_embedding(
    model: Backbone,
    split: Split,
    *,
    known: Split | None = None,
    preprocessing: Preprocessing,
    batch_size: int = 256,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
    among: Among = ALONE,
) -> EmbeddingScores:
    """Compute scores of the pooled embedding on a split in evaluation view (`augment=None`).

    k-NN looks for neighbours among the images of `known`. Without it, or if the split holds all of them, the images of the
    split are neighbours of each other. Raises ValueError for an empty split and for embeddings that are not finite.
    """

    def embed(images: Split) -> LabelledEmbeddings:
        return embed_split(
            model, images, preprocessing, batch_size=batch_size, device=device, autocast_dtype=autocast_dtype, among=among
        )

    features = embed(split)
    require_finite(features.embeddings.isfinite().all(dim=1))
    right = None
    if has_classes(split) and len(features) > 1:
        if known is None or not has_classes(known) or set(known.names) <= set(split.names):
            right = knn_right(features, device=device)
        else:
            right = knn_right(embed(known), features, device=device)
    return EmbeddingScores(
        len(features),
        None if right is None else Accuracy(int(right.sum()), len(right)),
        effective_rank(features.embeddings),
        effective_rank_interval(features.embeddings),
        width=features.embeddings.shape[1],
        uniformity=uniformity(features.embeddings) if len(features) > 1 else None,
        knn_right=right,
    )


def has_classes(split: Split) -> bool:
    """Return whether each image has one of two or more classes."""
    return not split.multi_label and len(split) > 0 and int(split.labels.min()) >= 0 and len(split.labels.unique()) > 1


def known_images(split: Split, *, seed: int) -> Split:
    """Return at most `KNOWN_IMAGES` of a split, drawn by the seed."""
    if len(split) <= KNOWN_IMAGES:
        return split
    return Subset(split, permutation(len(split), seed=seed, epoch=0)[:KNOWN_IMAGES].sort().values)


class _Pooled(nn.Module):
    """A backbone whose output is the pooled embedding."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        return self.model.embedding(images)


def embed_split(
    model: Backbone,
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    among: Among,
) -> LabelledEmbeddings:
    """Compute pooled embeddings of a split on the CPU, in its order, however many processes share it."""

    def take(embeddings: Tensor, raw: RawBatch) -> tuple[Tensor, Tensor, Tensor]:
        return embeddings.float().cpu(), raw.labels.cpu(), raw.indexes.cpu()

    batches = over_batches(
        take,
        _Pooled(model),
        split,
        preprocessing,
        batch_size=batch_size,
        device=device,
        autocast_dtype=autocast_dtype,
        among=among,
    )
    taken = [item for part in among.gather(batches) for item in part]
    if not taken:
        raise ValueError("there are no images to evaluate; the split is empty or none of its files could be read")
    embeddings, labels, indexes = (torch.cat(values) for values in zip(*taken, strict=True))
    order = indexes.argsort()
    return LabelledEmbeddings(embeddings[order], labels[order])

"""PretrainingComparison of frozen features before and after pre-training: linear probe, k-NN, rank and uniformity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.data.batches import Part
from vitrail.data.dataset import Split
from vitrail.evaluate.effective_rank import effective_rank, effective_rank_interval
from vitrail.evaluate.embedding import embed_split, has_classes
from vitrail.evaluate.evaluate import Among
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.intervals import Accuracy, Interval
from vitrail.evaluate.knn import knn_right
from vitrail.evaluate.paired import Paired, compare_pair, right_from_text, right_to_text
from vitrail.evaluate.probe import GRID, linear_probe
from vitrail.evaluate.uniformity import uniformity
from vitrail.models.backbone import Backbone
from vitrail.tasks.task import Task
from vitrail.train.distributed import World
from vitrail.train.folder import COMPARISON, write_text_atomically
from vitrail.train.watch import draw_images

MOST_IMAGES = 2000
"""Maximum number of training images, and of held-out ones: a comparison embeds them twice, as the steps of some batches do."""
WAYS = {"probe": "the linear probe", "knn": "k-NN"}


@dataclass(frozen=True)
class FrozenScores:
    """Scores of frozen features on held-out images."""

    images: int
    """Number of held-out images."""
    right: Mapping[str, Tensor]
    """For each of `WAYS`, which images are classified correctly; empty without labels."""
    rank: float
    rank_interval: Interval
    uniformity: float | None
    uniformity_interval: Interval | None

    def accuracy(self, way: str) -> Accuracy:
        """Return the accuracy by k-NN or by a linear probe."""
        return Accuracy(int(self.right[way].sum()), len(self.right[way]))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        ways = {way: {**self.accuracy(way).to_dict(), "right": right_to_text(right)} for way, right in self.right.items()}
        spread = None if self.uniformity_interval is None else list(self.uniformity_interval)
        return {
            "images": self.images,
            **ways,
            "effective_rank": self.rank,
            "effective_rank_interval": list(self.rank_interval),
            "uniformity": self.uniformity,
            "uniformity_interval": spread,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrozenScores:
        """Read what `to_dict` wrote."""
        right = {way: right_from_text(values[way]["right"]) for way in WAYS if way in values}
        rank, spread = values["effective_rank_interval"], values["uniformity_interval"]
        return cls(
            values["images"],
            right,
            values["effective_rank"],
            (rank[0], rank[1]),
            values["uniformity"],
            None if spread is None else (spread[0], spread[1]),
        )


@dataclass(frozen=True)
class PretrainingComparison:
    """Scores of the starting weights and of the pre-trained ones, on the same held-out images."""

    start: FrozenScores
    end: FrozenScores
    split: str
    """Name of the held-out split."""
    start_weights: str
    """Name of the starting weights, such as "random weights"."""

    @property
    def differences(self) -> dict[str, Paired]:
        """Difference of each accuracy; empty without labels."""
        return {way: compare_pair(self.start.right[way], self.end.right[way]) for way in self.end.right}

    @property
    def verdict(self) -> str:
        """Return one sentence: whether the linear probe, and k-NN where it differs, beats that of the starting weights."""
        if not self.differences:
            return (
                "whether pre-training paid can't be told without labels: a low rank is a bad sign, a high one no good one; "
                "`vitrail probe` on images with classes tells"
            )
        probe, knn = (self.differences[way].verdict for way in ("probe", "knn"))
        words = {
            "better": f"pre-training paid: the linear probe beats that of {self.start_weights}",
            "worse": f"pre-training did harm: the linear probe is worse than that of {self.start_weights}",
            "no difference shown": "pre-training has not paid yet: no difference shown to the linear probe of "
            f"{self.start_weights}",
        }
        also = "" if probe == knn else f"; by k-NN: {knn}"
        return words[probe] + also

    def lines(self) -> list[str]:
        """Return a line for each score, before and after, and the verdict."""
        lines = []
        for way, difference in self.differences.items():
            low, high = (100 * bound for bound in difference.interval)
            scores = " to ".join(_percent(each.accuracy(way)) for each in (self.start, self.end))
            lines.append(f"{WAYS[way]}: {scores}; {100 * difference.difference:+.1f} points ({low:+.1f} to {high:+.1f})")
        if not lines:
            for name, start, end, shape in (
                ("effective rank", self.start.rank, self.end.rank, ".1f"),
                ("uniformity", self.start.uniformity, self.end.uniformity, ".2f"),
            ):
                if start is not None and end is not None:
                    lines.append(f"{name}: {start:{shape}} to {end:{shape}}")
        return [*lines, self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "split": self.split,
            "start_weights": self.start_weights,
            "start": self.start.to_dict(),
            "end": self.end.to_dict(),
            "differences": {way: difference.to_dict() for way, difference in self.differences.items()},
            "verdict": self.verdict,
        }


def _percent(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{accuracy.value:.1%} ({low:.1%} to {high:.1%})"


# --------------------------------------------------------------------------------------------------------------------
# Measuring


def held_out_split(views: Mapping[str, Split]) -> str | None:
    """Return the name of the split that a run is scored on, test before val; None without held-out images."""
    return next((name for name in ("test", "val") if len(views.get(name, ()))), None)


def score_frozen(
    task: Task,
    model: Backbone,
    held_out: Split,
    *,
    num_classes: int,
    seed: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    world: World,
) -> FrozenScores:
    """Score a model's frozen features on at most `MOST_IMAGES` of a split in evaluation view.

    k-NN and probe learn from as many of the training images that the task keeps for k-NN; without these, or without two classes
    in both, there are no accuracies. All processes embed, and get the same scores.
    """

    def embed(split: Split) -> LabelledEmbeddings:
        return embed_split(
            model,
            draw_images(split, MOST_IMAGES),
            task.preprocessing,
            batch_size=256,
            device=device,
            autocast_dtype=autocast_dtype,
            among=Among(Part(world.rank, world.size), gather=world.gather),
        )

    world.broadcast_buffers(model)
    test, train = embed(held_out), None
    if task.known is not None and has_classes(task.known) and has_classes(held_out):
        train = embed(task.known)
    return world.run_on_first(lambda: fit_frozen(train, test, num_classes=num_classes, device=device, seed=seed))


def fit_frozen(
    train: LabelledEmbeddings | None, test: LabelledEmbeddings, *, num_classes: int, device: torch.device, seed: int = 0
) -> FrozenScores:
    """Fit k-NN and a linear probe to embedded training images, and score them and the rank on held-out ones."""
    right = {}
    if train is not None:
        probe = linear_probe(train, num_classes=num_classes, grid=GRID[::3], seed=seed, device=device)
        right["probe"] = probe.logits(test.embeddings).argmax(dim=1) == test.labels
        right["knn"] = knn_right(train, test, device=device)
    spread = uniformity(test.embeddings) if len(test) > 1 else None
    return FrozenScores(
        len(test),
        right,
        effective_rank(test.embeddings),
        effective_rank_interval(test.embeddings),
        None if spread is None else spread.value,
        None if spread is None else spread.interval,
    )


def write_start(folder: Path, scores: FrozenScores) -> None:
    """Write the scores of the starting weights, which the end of the run, resumed or not, compares with."""
    write_text_atomically(folder / COMPARISON, json.dumps({"start": scores.to_dict()}, allow_nan=False) + "\n")


def read_start(folder: Path) -> FrozenScores | None:
    """Read the scores of the starting weights; None for a run without."""
    path = folder / COMPARISON
    return FrozenScores.from_dict(json.loads(path.read_text(encoding="utf-8"))["start"]) if path.exists() else None


def write_comparison(folder: Path, comparison: PretrainingComparison) -> None:
    """Write the comparison, in the place of the scores of the starting weights."""
    write_text_atomically(folder / COMPARISON, json.dumps(comparison.to_dict(), indent=2, allow_nan=False) + "\n")

"""Predictions of a model, image by image, in one small file: what a report shows without a second pass of the model."""

# N images · K classes · R ranks

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.data.dataset import Split
from vitrail.evaluate.outliers import energy
from vitrail.weights.run_folder import write_atomically

PREDICTIONS = "predictions.npz"
"""Name of the file in a run folder."""
RANKS = 5
"""Most probable classes that are kept of each image."""
_ROWS = 4096  # at once, against the memory of a thousand classes in float64

Kind = TypeVar("Kind", bound="SplitPredictions")


@dataclass(frozen=True, eq=False)
class SplitPredictions:
    """Predictions of any task: a row for each image."""

    indexes: Int64[Tensor, " N"]
    """Position of each image in the split; unreadable images are missing."""

    def __len__(self) -> int:
        return len(self.indexes)

    @property
    def explained(self) -> Int64[Tensor, " N"]:
        """Class of each image whose evidence is worth a look."""
        raise NotImplementedError

    def are_of(self, split: Split) -> bool:
        """Return whether a split has the labels that these predictions were made for."""
        raise NotImplementedError

    def save(self, folder: Path) -> Path:
        """Write predictions.npz atomically, numbers in 32 bits. Return its path."""
        path = folder / PREDICTIONS
        small = {torch.int64: np.int32, torch.float32: np.float32, torch.float64: np.float32, torch.bool: np.bool_}
        with write_atomically(path) as draft, draft.open("wb") as file:
            arrays: dict[str, Any] = {name: value.numpy().astype(small[value.dtype]) for name, value in vars(self).items()}
            np.savez_compressed(file, allow_pickle=False, **arrays)
        return path


@dataclass(frozen=True, eq=False)
class ClassPredictions(SplitPredictions):
    """Predictions for images with one class each; probabilities are those after the temperature of the model's card."""

    labels: Int64[Tensor, " N"]
    ranked: Int64[Tensor, "N R"]
    """The most probable classes, the predicted one first."""
    probabilities: Float[Tensor, "N R"]
    """Their probabilities."""
    label_probability: Float[Tensor, " N"]
    """Probability of the right class."""
    energy: Float[Tensor, " N"]
    """Energy of the logits: higher for images unlike those of training."""

    @property
    def predicted(self) -> Int64[Tensor, " N"]:
        """Predicted class."""
        return self.ranked[:, 0]

    @property
    def confidence(self) -> Float[Tensor, " N"]:
        """Probability of the predicted class."""
        return self.probabilities[:, 0]

    @property
    def correct(self) -> Bool[Tensor, " N"]:
        """Whether the predicted class is the right one."""
        return self.predicted == self.labels

    @property
    def explained(self) -> Int64[Tensor, " N"]:
        """See SplitPredictions."""
        return self.predicted

    def are_of(self, split: Split) -> bool:
        """See SplitPredictions."""
        inside = not len(self) or int(self.indexes.max()) < len(split)
        return inside and torch.equal(split.labels[self.indexes], self.labels)


@dataclass(frozen=True, eq=False)
class WorstLabels(SplitPredictions):
    """The worst answer to each image that may have any number of labels."""

    worst: Int64[Tensor, " N"]
    """Label with the greatest loss."""
    probability: Float[Tensor, " N"]
    """Its probability."""
    positive: Bool[Tensor, " N"]
    """Whether the image has it."""

    @property
    def error(self) -> Float[Tensor, " N"]:
        """Distance of the probability to 0 or 1, whichever is right."""
        return torch.where(self.positive, 1 - self.probability, self.probability)

    @property
    def explained(self) -> Int64[Tensor, " N"]:
        """See SplitPredictions."""
        return self.worst

    def are_of(self, split: Split) -> bool:
        """See SplitPredictions."""
        inside = not len(self) or int(self.indexes.max()) < len(split)
        targets = split.targets(self.indexes) if inside else None
        return targets is not None and torch.equal(targets.gather(1, self.worst[:, None])[:, 0] > 0, self.positive)


def rank_predictions(
    logits: Float[Tensor, "N K"],
    labels: Int64[Tensor, " N"],
    indexes: Int64[Tensor, " N"],
    *,
    predicted: Int64[Tensor, " N"],
    temperature: float = 1.0,
) -> ClassPredictions:
    """Return the predictions of logits, on the CPU. `predicted` settles which of equal logits is first."""
    parts = []
    for rows in torch.arange(len(logits)).split(_ROWS):
        part, first = logits[rows], predicted[rows, None]
        shares = (part.double() / temperature).softmax(1)
        ranked = part.float().scatter(1, first, torch.inf).topk(min(RANKS, part.shape[1])).indices
        parts.append((ranked, shares.gather(1, ranked), shares.gather(1, labels[rows, None])[:, 0], energy(part)))
    ranked, probabilities, right, energies = map(torch.cat, zip(*parts, strict=True))
    return ClassPredictions(indexes, labels, ranked, probabilities.float(), right.float(), energies.float())


def find_worst_labels(logits: Float[Tensor, "N K"], targets: Bool[Tensor, "N K"], indexes: Int64[Tensor, " N"]) -> WorstLabels:
    """Return the label of the greatest loss of each image, by logits on the CPU."""
    distance = torch.where(targets, -logits, logits)  # the loss grows with it
    worst = distance.argmax(1)
    probability = logits.double().sigmoid().gather(1, worst[:, None])[:, 0]
    return WorstLabels(indexes, worst, probability.float(), targets.gather(1, worst[:, None])[:, 0])


def read_predictions(folder: Path, kind: type[Kind]) -> Kind | None:
    """Read predictions.npz; None without one, and for one of another kind. Raises ValueError for a file that is damaged."""
    path, names = folder / PREDICTIONS, {field.name for field in dataclasses.fields(kind)}
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} can't be read ({reason}); `vitrail evaluate {folder}` makes it anew") from error
    if arrays.keys() != names:
        return None
    return kind(**{name: value.long() if value.dtype == torch.int32 else value for name, value in arrays.items()})

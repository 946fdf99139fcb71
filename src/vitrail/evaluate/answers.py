"""Answers of a model, image by image, in one small file: what a report shows without a second pass of the model."""

# N images · K classes · R ranks

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.evaluate.outliers import energy
from vitrail.weights.run_folder import write_atomically

ANSWERS = "answers.npz"
"""Name of the file in a run folder."""
RANKS = 5
"""Most probable classes that are kept of each image."""
_ROWS = 4096  # at once, against the memory of a thousand classes in float64


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to images with one class each; probabilities are those after the temperature of the model's card."""

    indexes: Int64[Tensor, " N"]
    """Position of each image in the split; unreadable images are missing."""
    labels: Int64[Tensor, " N"]
    ranked: Int64[Tensor, "N R"]
    """The most probable classes, the predicted one first."""
    probabilities: Float[Tensor, "N R"]
    """Their probabilities."""
    label_probability: Float[Tensor, " N"]
    """Probability of the right class."""
    energy: Float[Tensor, " N"]
    """Energy of the logits: higher for images unlike those of training."""

    def __len__(self) -> int:
        return len(self.labels)

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

    def save(self, folder: Path) -> Path:
        """Write answers.npz atomically, with classes as 32-bit and numbers as 32-bit. Return its path."""
        path = folder / ANSWERS
        with write_atomically(path) as draft, draft.open("wb") as file:
            arrays = {name: value.numpy() for name, value in vars(self).items()}
            small = {name: value.astype(np.int32 if value.dtype == np.int64 else np.float32) for name, value in arrays.items()}
            np.savez_compressed(file, allow_pickle=False, **small)
        return path


def rank_answers(
    logits: Float[Tensor, "N K"],
    labels: Int64[Tensor, " N"],
    indexes: Int64[Tensor, " N"],
    *,
    predicted: Int64[Tensor, " N"],
    temperature: float = 1.0,
) -> Answers:
    """Return the answers of logits, on the CPU. `predicted` settles which of equal logits is first."""
    parts = []
    for rows in torch.arange(len(logits)).split(_ROWS):
        part, first = logits[rows], predicted[rows, None]
        shares = (part.double() / temperature).softmax(1)
        ranked = part.float().scatter(1, first, torch.inf).topk(min(RANKS, part.shape[1])).indices
        parts.append((ranked, shares.gather(1, ranked), shares.gather(1, labels[rows, None])[:, 0], energy(part)))
    ranked, probabilities, right, energies = map(torch.cat, zip(*parts, strict=True))
    return Answers(indexes, labels, ranked, probabilities.float(), right.float(), energies.float())


def read_answers(folder: Path) -> Answers | None:
    """Read answers.npz; None without one. Raises ValueError for a file that is damaged."""
    path = folder / ANSWERS
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {field.name: torch.from_numpy(file[field.name]) for field in dataclasses.fields(Answers)}
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} can't be read ({reason}); `vitrail evaluate {folder}` makes it anew") from error
    return Answers(**{name: value if value.is_floating_point() else value.long() for name, value in arrays.items()})

"""A run folder and images -> labels and probabilities. Images pass through the same view as in evaluation."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitrail import weights
from vitrail.data.augment import normalise
from vitrail.data.decode import BadImage, eval_view
from vitrail.data.files import Listed
from vitrail.data.labelled import TABLE
from vitrail.data.listing import files_under
from vitrail.data.measure import measure_values
from vitrail.models.device import pick_device

Picture = str | Path | Image.Image | NDArray[Any]

THRESHOLD = 0.5
"""From this probability on an image has a label, where it may have any number of them."""


NOT_FINITE = "the model's output for it is not finite, so it has no label; look whether the weights are finite"
"""Why an image that was read has no label."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, or why it could not be read."""

    path: str
    """The path that was given; "#3" for the fourth picture that came without one."""
    label: str | None
    """The most probable class; None where there is an error."""
    probability: float | None
    top: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, falling."""
    error: str | None = None
    """Why there is no label: the image could not be read, or the model's output is not finite."""
    labels: tuple[tuple[str, float], ...] | None = None
    """Of a model for images with any number of labels: those whose probability is at least 0.5, falling. None of another."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        top, labels = (
            [{"label": label, "probability": probability} for label, probability in pairs]
            for pairs in (self.top, self.labels or ())
        )
        said = {"path": self.path, "label": self.label, "probability": self.probability, "top": top, "error": self.error}
        return said if self.labels is None else {**said, "labels": labels}


class Predictor:
    """The model of a run folder, or of any checkpoint with a head, ready for images.

    `Predictor("runs/first").predict(["a.png", "b.jpg"])`. A checkpoint that names no classes gets their numbers. Raises
    ValueError for what `vitrail.load` can't load, for a model without a head, and for a device that is not there.
    """

    def __init__(self, run: str | Path, *, device: str = "auto", batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        self.device = pick_device(device)
        self.batch_size = batch_size
        self.model = weights.load(run).to(self.device).eval()
        if not self.model.config.num_classes:
            raise ValueError(f"{run} has no classes; fine-tune it: `vitrail train DATA --weights {run}`")
        assert self.model.preprocessing is not None  # whatever loads weights says what happens to images
        self.preprocessing = self.model.preprocessing
        self.multi_label = self.model.multi_label
        self.classes: tuple[str, ...] = self.model.classes or tuple(map(str, range(self.model.config.num_classes)))

    def predict(self, images: Iterable[Picture], *, top: int = 5) -> list[Prediction]:
        """One prediction an image, in order, with the `top` most probable classes in each.

        An image is a path, a Pillow image, or a uint8 array (H, W), (H, W, 1) or (H, W, 3). One that cannot be read
        gives a prediction with `error` set, and the others are done.
        """
        return list(self.stream(images, top=top))

    def stream(self, images: Iterable[Picture], *, top: int = 5) -> Iterator[Prediction]:
        """As `predict`, one by one as they are ready: at no time is more than a batch of images in memory."""
        if top < 1:
            raise ValueError(f"top {top} must be at least 1")
        numbered = enumerate(images)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without Python's lock
            while chunk := list(islice(numbered, self.batch_size)):
                views = list(pool.map(self._view, (image for _, image in chunk)))
                readable = [view for view in views if isinstance(view, Tensor)]
                rows = iter(self.probabilities(torch.stack(readable)) if readable else ())
                for (position, image), view in zip(chunk, views, strict=True):
                    name = _name(image, position)
                    yield self._unread(name, view) if isinstance(view, str) else self._named(name, next(rows), top)

    @torch.inference_mode()
    def probabilities(self, images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The probability of every class, on the CPU, for images that already are evaluation views.

        They sum to one, but where an image may have any number of the classes. All of an image are NaN where the model's
        output for it is not finite.
        """
        logits: Tensor = self.model(normalise(images.to(self.device), self.preprocessing)).float()  # (B, K)
        probabilities = logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)
        return probabilities.masked_fill(~logits.isfinite().all(dim=-1, keepdim=True), math.nan).cpu()

    def range_mismatch(self, paths: Iterable[str | Path]) -> str | None:
        """Return a warning where images of more than 8 bits use values that the model was not trained for, else None."""
        used = measure_values(Path(), [Listed(str(path), 0) for path in paths], threads=-1)
        return None if used is None else used.mismatch(self.preprocessing.range)

    def _view(self, image: Picture) -> UInt8[Tensor, "C H W"] | str:
        """The evaluation view, or the reason why there is none."""
        try:
            return eval_view(image, self.preprocessing)
        except BadImage as error:
            return str(error)

    def _named(self, name: str, row: Float[Tensor, " K"], top: int) -> Prediction:
        if row.isnan().any():
            return self._unread(name, NOT_FINITE)
        values, order = row.topk(min(top, len(row)))
        best = tuple((self.classes[k], p) for k, p in zip(order.tolist(), values.tolist(), strict=True))
        if not self.multi_label:
            return Prediction(name, *best[0], best)
        falling = sorted(zip(row.tolist(), self.classes, strict=True), key=lambda pair: -pair[0])
        return Prediction(name, *best[0], best, labels=tuple((label, p) for p, label in falling if p >= THRESHOLD))

    def _unread(self, name: str, reason: str) -> Prediction:
        return Prediction(name, None, None, (), reason, () if self.multi_label else None)


def find_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The images that paths name: a file stands for itself, a folder for every file in it and in its folders.

    A folder is listed as for training: whatever its suffix a file is tried, and links are followed; hidden files and what
    Vitrail wrote are left out, and so is the folder's labels.csv. Raises ValueError for a folder without files.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = [inner for inner in files_under(path) if inner != TABLE]
        if not found:
            raise ValueError(f"{path} holds no files; name a folder or a file that does")
        yield from (path / inner for inner in found)


def _name(image: Picture, position: int) -> str:
    if isinstance(image, str | Path):
        return str(image)
    return str(getattr(image, "filename", "") or f"#{position}")

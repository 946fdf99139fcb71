"""Predictions: labels and probabilities of images, in the same view as in evaluation."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
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
from vitrail.deploy.backends import BACKENDS, require_available
from vitrail.deploy.choice import Measured, choose, deviation, error_of, race
from vitrail.deploy.decoding import View, decoded_batches
from vitrail.deploy.export.metadata import is_export
from vitrail.deploy.export.reopen import open_export
from vitrail.deploy.forms import Forward, fp32
from vitrail.evaluate.conformal import prediction_sets, threshold
from vitrail.evaluate.outliers import energy
from vitrail.models.backbone import Backbone
from vitrail.models.card import Calibration
from vitrail.models.device import keep_freed_memory, pick_device
from vitrail.models.merging import MergedViT

Picture = str | Path | Image.Image | NDArray[Any]

THRESHOLD = 0.5
"""Probability from which on a multi-label image has a label."""


NOT_FINITE = "the model's output for it is not finite, so it has no label; look whether the weights are finite"
"""Error of an image that was read but has no finite output."""


@dataclass(frozen=True)
class Comparison:
    """A backend beside fp32, on the same images."""

    backend: str
    """Name in `BACKENDS`."""
    measured: Measured
    fp32: Measured

    def __str__(self) -> str:
        """Format as one line."""
        speed = f"backend {self.backend}: {self.measured.images_per_s:,.1f} images/s"
        count = f"{self.measured.images} image{'s' * (self.measured.images != 1)}"
        if self.backend == "fp32":
            return f"{speed} on {count}"
        exactness = f"logits differ from fp32's by {self.measured.difference:.1e} at most"
        return f"{speed}, fp32 {self.fp32.images_per_s:,.1f}; {exactness} on {count}"


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image, or the reason why there is none."""

    path: str
    """Path of the image; "#3" for the fourth image given without one."""
    label: str | None
    """Most probable class; None in case of an error."""
    probability: float | None
    top: tuple[tuple[str, float], ...]
    """Most probable classes with their probabilities, in descending order."""
    error: str | None = None
    """Reason for a missing label: the image is unreadable, or the model's output is not finite."""
    labels: tuple[tuple[str, float], ...] | None = None
    """Labels with probability 0.5 or above, in descending order, from a multi-label model; None from any other."""
    outlier: bool | None = None
    """True for an image unlike those of training, by the energy of its logits; None of a model without the threshold."""
    classes: tuple[str, ...] | None = None
    """Set of classes with the coverage that was asked for, in descending order of probability; it may be empty. None where none
    was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        top, labels = (
            [{"label": label, "probability": probability} for label, probability in pairs]
            for pairs in (self.top, self.labels or ())
        )
        fields = {"path": self.path, "label": self.label, "probability": self.probability, "top": top, "error": self.error}
        optional: dict[str, Any] = {"outlier": self.outlier, "classes": None if self.classes is None else list(self.classes)}
        optional["labels"] = None if self.labels is None else labels
        return fields | {name: value for name, value in optional.items() if value is not None}


class Predictor:
    """Model of a run folder, of any checkpoint with a head, of an export, or one that is loaded already, for prediction.

    `Predictor("runs/first").predict(["a.png", "b.jpg"])`. A checkpoint that names no classes gets their numbers. `backend` is
    a row of `BACKENDS`, or "auto": the fastest one of those that are correct, which the first batch measures (about 2 s, once
    for a machine and a kind of model). On a CPU these compute in fp32; on a GPU bf16 is among them. Probabilities have the
    temperature of the model's card, unless `calibrated` is False. With `merge`, that many patches are merged in each block
    (`models.merging`): faster, and a little less exact; backends are compared with the merged model in fp32. Raises ValueError
    for a checkpoint that `vitrail.load` can't load, a model without a head or whose tokens can't be merged, and an unavailable
    device or backend.
    """

    def __init__(
        self,
        run: str | Path | Backbone,
        *,
        device: str = "auto",
        batch_size: int = 32,
        backend: str = "auto",
        calibrated: bool = True,
        merge: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        if not isinstance(run, Backbone) and is_export(run):
            device, backend = check_export_options(run, device=device, backend=backend)
        self.device = pick_device(device)
        require_available(backend, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()  # each batch takes the memory of the one before
        self.batch_size = batch_size
        self.backend = backend
        """Name of the backend; "auto" until the first batch has chosen one."""
        self.model: Backbone = _open(run, self.device)
        if not self.model.config.num_classes:
            raise ValueError(f"{run} has no classes; fine-tune it: `vitrail train DATA --weights {run}`")
        if self.model.preprocessing is None:
            raise ValueError("the model does not say what happens to its images; set model.preprocessing")
        self.preprocessing = self.model.preprocessing
        if merge:
            self.model = MergedViT(self.model, merge).eval()
        self.multi_label = self.model.multi_label
        card = self.model.card.calibration
        self.calibration = card if calibrated and card is not None else Calibration(images=0)
        """Temperature, conformal scores and outlier threshold in use; neutral where the card has none."""
        self.classes: tuple[str, ...] = self.model.classes or tuple(map(str, range(self.model.config.num_classes)))
        self._forward: Forward | None = None

    def predict(self, images: Iterable[Picture], *, top: int = 5, coverage: float | None = None) -> list[Prediction]:
        """Return one prediction per image, in order, each with the `top` most probable classes.

        With `coverage`, such as 0.9, each has a set of classes too; for images like those of training, that share of the sets
        holds the right class. Raises ValueError for a coverage of a model that was not calibrated for sets.

        An image is a path, a Pillow image, or a uint8 array (H, W), (H, W, 1) or (H, W, 3). One that cannot be read
        gives a prediction with `error` set, and does not affect the others.
        """
        return list(self.stream(images, top=top, coverage=coverage))

    def stream(self, images: Iterable[Picture], *, top: int = 5, coverage: float | None = None) -> Iterator[Prediction]:
        """Yield predictions one by one, as `predict` returns them.

        At most two batches of images are in memory at a time: one is decoded while the model computes the other.
        """
        with closing(self._decoded(images)) as batches:
            yield from self.stream_decoded(batches, top=top, coverage=coverage)

    def stream_decoded(
        self, batches: Iterable[tuple[Sequence[str], Sequence[View]]], *, top: int = 5, coverage: float | None = None
    ) -> Iterator[Prediction]:
        """Yield predictions for batches of names and evaluation views, or the reasons why there is none."""
        if top < 1:
            raise ValueError(f"top {top} must be at least 1")
        if coverage is not None:
            self.check_coverage(coverage)
        for names, views in batches:
            readable = [(name, view) for name, view in zip(names, views, strict=True) if isinstance(view, Tensor)]
            named: Iterator[Prediction] = iter(())
            if readable:
                logits = self.logits(torch.stack([view for _, view in readable]))
                named = iter(self.name([name for name, _ in readable], logits, top=top, coverage=coverage))
            for name, view in zip(names, views, strict=True):
                yield self._unread(name, view) if isinstance(view, str) else next(named)
            del views, readable, view  # before the next batch is fetched

    @torch.inference_mode()
    def probabilities(self, images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Compute the probability of every class, on the CPU, for images in evaluation view.

        They sum to one, except in a multi-label model. All probabilities of an image are NaN if the model's output for it is
        not finite.
        """
        return self._probabilities(self.logits(images))

    @torch.inference_mode()
    def logits(self, images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Compute the logits, before the temperature, on the CPU, for images in evaluation view.

        All logits of an image are NaN if the model's output for it is not finite.
        """
        inputs = normalise(images.to(self.device), self.preprocessing)
        logits = self._form(inputs)(inputs)  # (B, K)
        return logits.masked_fill(~logits.isfinite().all(dim=-1, keepdim=True), math.nan).float().cpu()

    def check_coverage(self, coverage: float) -> None:
        """Raise ValueError for a coverage outside of 0 to 1, and for a model that was not calibrated for sets."""
        threshold(self.calibration.conformal_scores, coverage)
        if not self.calibration.conformal_scores:
            raise ValueError(
                f"coverage {coverage:g} needs a model with conformal scores in its card, and this one has none; train it with "
                "validation images of one class each, or leave the coverage out"
            )

    def _probabilities(self, logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return logits.sigmoid() if self.multi_label else (logits / self.calibration.temperature).softmax(dim=-1)

    @torch.inference_mode()
    def compare(self, images: Iterable[Picture]) -> Comparison | None:
        """Measure the backend beside fp32 on the first batch (about 2 s). None where no image of it can be read."""
        with closing(self._decoded(islice(images, self.batch_size))) as batches:
            views = next(batches, ([], []))[1]
        readable = [view for view in views if isinstance(view, Tensor)]
        if not readable:
            return None
        inputs = normalise(torch.stack(readable).to(self.device), self.preprocessing)
        form = self._form(inputs)  # "auto" becomes a name here
        measured = race({"fp32": fp32(self.model, self.batch_size), self.backend: form}, inputs)
        return Comparison(self.backend, measured[self.backend], measured["fp32"])

    def range_mismatch(self, paths: Iterable[str | Path]) -> str | None:
        """Return a warning where images of more than 8 bits use values that the model was not trained for, else None."""
        used = measure_values(Path(), [Listed(str(path), 0) for path in paths], threads=-1)
        return None if used is None else used.mismatch(self.preprocessing.range)

    def _form(self, inputs: Float[Tensor, "B C H W"]) -> Forward:
        """Return the model's form of the backend, which the first batch chooses, or checks if it is named."""
        if self._forward is None:
            named = self.backend != "auto"
            name = self.backend if named else choose(self.model, inputs, batch_size=self.batch_size)
            form: Forward = BACKENDS[name].build(self.model, batch_size=self.batch_size)
            if named and (wrong := error_of(name, form, self.model, inputs[:1])) is not None:
                warnings.warn(f'{deviation(name, wrong)}; backend "fp32" has none', stacklevel=3)
            self.backend, self._forward = name, form
        return self._forward

    def _decoded(self, images: Iterable[Picture]) -> Generator[tuple[list[str], list[View]], None, None]:
        """Yield the names and views of each batch, in order, while the next batch is decoded."""
        named = ((_name(image, position), image) for position, image in enumerate(images))
        return decoded_batches(named, self._view, batch_size=self.batch_size)

    def _view(self, image: Picture) -> View:
        """Return the evaluation view, or the reason why there is none."""
        try:
            return eval_view(image, self.preprocessing)
        except BadImage as error:
            return str(error)

    def name(
        self, names: Sequence[str], logits: Float[Tensor, "B K"], *, top: int = 5, coverage: float | None = None
    ) -> list[Prediction]:
        """Return the predictions of images of these names from their logits, as `predict` returns them."""
        wrong = logits.isnan().any(dim=-1).tolist()
        rows, known = self._probabilities(logits), self.calibration  # (B, K)
        values, order = rows.topk(min(top, rows.shape[-1]))
        best = [
            tuple((self.classes[k], p) for k, p in zip(*pair, strict=True))
            for pair in zip(order.tolist(), values.tolist(), strict=True)
        ]
        if self.multi_label:
            falling = (sorted(zip(row, self.classes, strict=True), key=lambda pair: -pair[0]) for row in rows.tolist())
            labels = [tuple((label, p) for p, label in row if p >= THRESHOLD) for row in falling]
            return [
                self._unread(name, NOT_FINITE) if bad else Prediction(name, *pairs[0], pairs, labels=several)
                for name, bad, pairs, several in zip(names, wrong, best, labels, strict=True)
            ]
        outliers: list[bool | None] = [None] * len(names)
        if known.outlier_energy is not None:
            outliers = (energy(logits) > known.outlier_energy).tolist()
        sets: list[tuple[str, ...] | None] = [None] * len(names)
        if coverage is not None:
            inside = prediction_sets(logits, known.conformal_scores, coverage=coverage, temperature=known.temperature)
            falling_order = rows.argsort(descending=True)
            sets = [
                tuple(self.classes[k] for k in order if row[k])
                for order, row in zip(falling_order.tolist(), inside.tolist(), strict=True)
            ]
        return [
            self._unread(name, NOT_FINITE) if bad else Prediction(name, *pairs[0], pairs, outlier=outlier, classes=chosen)
            for name, bad, pairs, outlier, chosen in zip(names, wrong, best, outliers, sets, strict=True)
        ]

    def _unread(self, name: str, reason: str) -> Prediction:
        return Prediction(name, None, None, (), reason, () if self.multi_label else None)


def check_export_options(run: str | Path, *, device: str, backend: str) -> tuple[str, str]:
    """Return device and backend of an export, which its runtime decides. Raises ValueError for any other."""
    if device not in ("auto", "cpu"):
        raise ValueError(f'{run} is an export, which runs on the CPU, and not on "{device}"; leave the device out')
    if backend not in ("auto", "fp32"):
        raise ValueError(f'backend "{backend}" is a form of a torch model, and {run} is an export; leave the backend out')
    return "cpu", "fp32"


def _open(run: str | Path | Backbone, device: torch.device) -> Backbone:
    """Return the model, on its device; that of an export is where its file's runtime computes."""
    if not isinstance(run, Backbone):
        if is_export(run):
            return open_export(run)
        run = weights.load(run)
    return run.to(device).eval()


def find_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Find images by path: a file stands for itself, a folder for every file in it and its subfolders.

    A folder is listed as for training: files of every suffix are tried and links are followed; hidden files, files that
    Vitrail wrote and the folder's labels.csv are left out. Raises ValueError for a folder without files.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        files = [inner for inner in files_under(path) if inner != TABLE]
        if not files:
            raise ValueError(f"{path} holds no files; name a folder or a file that does")
        yield from (path / inner for inner in files)


def _name(image: Picture, position: int) -> str:
    if isinstance(image, str | Path):
        return str(image)
    return str(getattr(image, "filename", "") or f"#{position}")

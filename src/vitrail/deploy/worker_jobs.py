"""Work of one of many workers: predictions or embeddings of a chunk of images, as a table."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitrail.deploy.backends import BACKENDS, require_available
from vitrail.deploy.decoding import View
from vitrail.deploy.embeddings import FeatureRows, blank, measured_backend, rows_of, whole_batch_first
from vitrail.deploy.predict import Prediction, Predictor
from vitrail.deploy.tables import fixed_size_lists
from vitrail.evaluate.features import model_hash
from vitrail.explain.inputs import model_name
from vitrail.models.backbone import Backbone
from vitrail.models.device import keep_freed_memory, pick_device
from vitrail.settings import Preprocessing

Batches = Iterable[tuple[Sequence[str], Sequence[View]]]
"""Names and evaluation views, or the reasons why there is none."""
Compute = Callable[[Batches], Any]
"""Batches to a pyarrow table with the columns `path` and `error`."""


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """Predictions, in the columns of `vitrail predict --csv`."""

    model: Backbone
    batch_size: int
    device: str
    backend: str
    calibrated: bool
    top: int
    coverage: float | None

    def settings(self) -> dict[str, Any]:
        """Return what the results depend on."""
        options = {"top": self.top, "coverage": self.coverage, "calibrated": self.calibrated, "backend": self.backend}
        return {"results": "predictions", **options, **_about(self.model)}

    def start(self) -> Compute:
        """Make the model ready, in the worker."""
        predictor = Predictor(
            self.model, device=self.device, batch_size=self.batch_size, backend=self.backend, calibrated=self.calibrated
        )

        def compute(batches: Batches) -> Any:
            done = list(predictor.stream_decoded(batches, top=self.top, coverage=self.coverage))
            return prediction_table(done, predictor, top=self.top, sets=self.coverage is not None)

        return compute

    def row_bytes(self) -> int:
        """Return the size of a prediction in memory, roughly."""
        return 1000 + 200 * self.top


def prediction_table(done: Sequence[Prediction], predictor: Predictor, *, top: int, sets: bool) -> Any:
    """Return predictions as a pyarrow table: path, label, probability, label_2, probability_2, …, error.

    A multi-label model has the lists `labels`, sets are the lists `set`, and a model with an outlier threshold has `outlier`.
    """
    pa = importlib.import_module("pyarrow")
    columns: dict[str, Any] = {"path": pa.array([each.path for each in done], pa.string())}
    if predictor.multi_label:
        labels = [None if each.error is not None else [label for label, _ in each.labels or ()] for each in done]
        columns["labels"] = pa.array(labels, pa.list_(pa.string()))
    for rank in range(min(top, len(predictor.classes))):
        pairs = [each.top[rank] if each.top else (None, None) for each in done]
        end = f"_{rank + 1}" if rank else ""
        columns[f"label{end}"] = pa.array([label for label, _ in pairs], pa.string())
        columns[f"probability{end}"] = pa.array([p for _, p in pairs], pa.float64())
    if sets:
        columns["set"] = pa.array(
            [each.classes if each.classes is None else list(each.classes) for each in done], pa.list_(pa.string())
        )
    if predictor.calibration.outlier_energy is not None and not predictor.multi_label:
        columns["outlier"] = pa.array([each.outlier for each in done], pa.bool_())
    columns["error"] = pa.array([each.error for each in done], pa.string())
    return pa.table(columns)


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """Embeddings, in the columns of `vitrail embed`."""

    model: Backbone
    batch_size: int
    device: str
    backend: str
    features: str
    """A key of `embeddings.FEATURES`."""
    dtype: str

    def settings(self) -> dict[str, Any]:
        """Return what the results depend on."""
        options = {"features": self.features, "shape": list(self.shape()), "dtype": self.dtype, "backend": self.backend}
        return {"results": "embeddings", **options, **_about(self.model)}

    def shape(self) -> tuple[int, ...]:
        """Return the shape of an embedding. Raises ValueError for features that the model does not have."""
        where = next(self.model.parameters()).device
        return FeatureRows(self.model.eval(), self.features).shape_of(blank(_preprocessing(self.model), 1, where))

    def start(self) -> Compute:
        """Make the model ready, in the worker."""
        where = pick_device(self.device)
        require_available(self.backend, where)
        if where.type == "cpu":
            keep_freed_memory()
        rows, preprocessing, shape = (
            FeatureRows(self.model.to(where).eval(), self.features),
            _preprocessing(self.model),
            self.shape(),
        )
        name = measured_backend(rows, self.batch_size, where) if self.backend == "auto" else self.backend
        forward = whole_batch_first(BACKENDS[name].build(rows, batch_size=self.batch_size), self.batch_size)
        shape = self.shape()
        width = (math.prod(shape), self.dtype)

        @torch.inference_mode()
        def compute(batches: Batches) -> Any:
            pa = importlib.import_module("pyarrow")
            paths, errors, values = list[str](), list[str | None](), []
            for names, views in batches:
                some, failed = rows_of(list(views), forward, preprocessing, where, width)
                paths += names
                errors += [failed.get(place) for place in range(len(names))]
                values.append(some)
            embeddings = fixed_size_lists(np.concatenate(values).reshape(-1, *shape))
            return pa.table(
                {"path": pa.array(paths, pa.string()), "embedding": embeddings, "error": pa.array(errors, pa.string())}
            )

        return compute

    def row_bytes(self) -> int:
        """Return the size of an embedding."""
        return math.prod(self.shape()) * np.dtype(self.dtype).itemsize


Job = PredictJob | EmbedJob
"""Work on images that travels to the workers with its model."""


def _about(model: Backbone) -> dict[str, Any]:
    """Return what identifies a model: its name, its weights and its preprocessing."""
    receipt = model.receipt
    return {
        "model": model_name(model),
        "sha256": receipt.sha256 if receipt is not None else None,
        "tensors_sha256": model_hash(model),
        "preprocessing": dataclasses.asdict(_preprocessing(model)),
    }


def _preprocessing(model: Backbone) -> Preprocessing:
    assert model.preprocessing is not None  # whatever loads weights says what happens to images
    return model.preprocessing

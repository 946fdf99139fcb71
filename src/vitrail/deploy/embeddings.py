"""Embeddings of many images in a file: in input order, in bounded memory, and resumed after an interruption."""

# B batch · C channels · H W image · E pooled embedding · gh gw grid of patches · D width · R numbers of a row

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from vitrail import weights as anybodys
from vitrail.data.augment import normalise
from vitrail.data.dataset import Skipped, SplitName
from vitrail.data.listing import mark_output
from vitrail.deploy.backends import BACKENDS, require_available
from vitrail.deploy.choice import choose
from vitrail.deploy.decoding import View, decoded_batches
from vitrail.deploy.draft import Draft, is_begun
from vitrail.deploy.forms import Forward
from vitrail.deploy.image_list import ImageList, list_images
from vitrail.deploy.tables import Columns, format_of
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.evaluate.features import model_hash
from vitrail.evaluate.run import is_run
from vitrail.explain.inputs import model_name
from vitrail.models.backbone import Backbone, Features
from vitrail.models.device import keep_freed_memory, pick_device
from vitrail.settings import DataConfig, Pair, Preprocessing, layers, nearest
from vitrail.text import printable_errors
from vitrail.weights.run_folder import SETTINGS

DTYPES = ("float32", "float16")
"""Number types of a file."""
NOT_FINITE = "the model's output for it is not finite; look whether the weights are finite"
TOO_LARGE = "its embedding does not fit float16; use float32"
_LAYOUT = 1  # part of the settings of a draft: another way to compute the same rows takes the next number
_SHOWN = 1000  # images from which on a bar shows how far it is


@dataclass(frozen=True)
class Embedded:
    """Embeddings that were written to a file."""

    files: tuple[Path, ...]
    """The file, and with .npy the table and the metadata beside it."""
    count: int
    """Number of images, and of rows."""
    shape: tuple[int, ...]
    """Shape of an embedding: (E,), or (gh, gw, D) of patches."""
    dtype: str
    failed: tuple[Skipped, ...]
    """Images without an embedding, with the reason; their rows are NaN."""
    resumed_at: int
    """Rows that an earlier, interrupted call had computed; 0 for a new file."""
    seconds: float
    """Time of this call for the other rows."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        fields = dataclasses.asdict(self) | {"files": [str(file) for file in self.files]}
        return {**fields, "failed": [item._asdict() for item in self.failed]}


@printable_errors()
def embed(
    weights: str | Path | Backbone,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    split: SplitName | None = None,
    patches: bool = False,
    pool: str = "head",
    dtype: str = "float32",
    img_size: int | Pair | None = None,
    batch_size: int = 32,
    device: str = "auto",
    backend: str = "auto",
    overwrite: bool = False,
    report: Callable[[str], object] = warnings.warn,
) -> Embedded:
    """Write the embeddings of images to `out`, a .parquet or .npy file: one row for each image, in input order.

    `data` is a folder with or without classes, a named set, an image, a .txt file with one path a line, or a list of paths;
    without `split`, all of it. `pool` is "head", the input of the model's head; "cls", the class token; or "avg", the mean of
    the patches. With `patches`, a row has the embedding of each patch (gh, gw, D) instead. `dtype` is "float32" or "float16",
    `backend` one of `BACKENDS` or "auto".

    Nothing is under the name `out` before all rows are there. The rows are in `out`.part until then: the same call goes on
    with them, and the file is the same, bit for bit, as that of an uninterrupted call on this machine. Images that can't be
    read have a row of NaN, and the reason. `report` receives a line for each assumption about the data.
    Raises ValueError, in one line, for a file that exists (without `overwrite`), a draft of other weights, data or settings,
    data without images, and a model without the features that are asked for.
    """
    out = Path(out).expanduser()
    form, files = format_of(out), format_of(out).files(out)
    require_choices(pool=pool, dtype=dtype, patches=patches, batch_size=batch_size)
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.parent} is not a folder; make it first: mkdir -p {out.parent}")
    there = [file for file in files if file.exists()]
    if there and not overwrite and (out.exists() or not is_begun(out)):  # else the last call was stopped between the files
        raise ValueError(f"{there[0]} exists; name another file, or replace it with --overwrite")
    model = load_backbone(weights, img_size=img_size, device=device)
    preprocessing, where = model.preprocessing, next(model.parameters()).device
    if preprocessing is None:
        raise ValueError(f"{weights} has random weights, whose features say nothing; give a run, a file or a Hub id")
    require_available(backend, where)
    if where.type == "cpu":
        keep_freed_memory()  # each batch takes the memory of the one before
    images = list_images(data, split=split, preprocessing=preprocessing, val_fraction=_val_fraction(weights))
    for note in images.notes:
        report(note)

    rows = FeatureRows(model, "patches" if patches else pool)
    with in_eval_mode(model):
        shape = rows.shape_of(blank(preprocessing, 1, where))
    settings: dict[str, Any] = {
        "layout": _LAYOUT,
        "weights": model_hash(model),
        "preprocessing": dataclasses.asdict(preprocessing),
        "data": images.fingerprint,
        "images": len(images),
        "split": split,
        "features": rows.features,
        "shape": shape,
        "dtype": dtype,
        "batch size": batch_size,
        "device": where.type,
        "backend": backend,
    }
    draft = Draft(out, settings=settings, rows=len(images), shape=shape, dtype=dtype, overwrite=overwrite)
    start = time.perf_counter()
    with closing(draft), in_eval_mode(model):
        name = _backend_of(draft, rows, backend, batch_size, where)
        if draft.done < len(images):
            _compute(draft, rows, images, name=name, batch_size=batch_size, device=where, dtype=dtype)
    if len(draft.failed) == len(images):
        first, reason = images.paths[0], draft.failed[0]
        draft.discard()
        raise ValueError(f"none of the {len(images)} images has an embedding ({first}: {reason})")
    metadata = {
        "model": model_name(model),
        "weights": "" if isinstance(weights, Backbone) else str(weights),
        "sha256": model.receipt.sha256 if model.receipt is not None else None,
        "tensors_sha256": settings["weights"],
        "data": images.name,
        **{key: settings[key] for key in ("preprocessing", "split", "features", "shape", "dtype", "device")},
        "backend": name,
    }
    failed = tuple(Skipped(images.paths[row], reason) for row, reason in sorted(draft.failed.items()))
    form.write(draft, out, Columns(images.paths, images.labels, draft.failed, metadata))
    mark_output(out.parent, files, command="embed")
    return Embedded(files, len(images), shape, dtype, failed, draft.begun_at, time.perf_counter() - start)


class FeatureRows(nn.Module):
    """A backbone whose output is one row of numbers for each image."""

    def __init__(self, model: Backbone, features: str) -> None:
        super().__init__()
        self.model, self.features = model, features

    @property
    def config(self) -> tuple[Any, str]:
        """Key under which a measured backend is remembered: its speed depends on shape and features."""
        return self.model.config, self.features

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B R"]:
        """Compute the rows."""
        return FEATURES[self.features](self.model.features(images), self.model).flatten(1)

    @torch.inference_mode()
    def shape_of(self, images: Float[Tensor, "B C H W"]) -> tuple[int, ...]:
        """Return the shape of a row before it is flattened. Raises ValueError for features that the model does not have."""
        return tuple(FEATURES[self.features](self.model.features(images), self.model).shape[1:])


def _head(features: Features, model: Backbone) -> Tensor:
    return features.pooled


def _cls(features: Features, model: Backbone) -> Tensor:
    if features.tokens is None or not features.prefix or not getattr(model.config, "class_token", True):
        raise ValueError(f'{model_name(model)} has no class token; use pool "head" or "avg"')
    return features.tokens[:, 0]


def _avg(features: Features, model: Backbone) -> Tensor:
    return _patches(features, model).mean(dim=(1, 2))


def _patches(features: Features, model: Backbone) -> Float[Tensor, "B gh gw D"]:
    """Return the patch tokens after the last norm, or the coarsest map of a model without tokens."""
    if features.tokens is not None and features.grid is not None:
        return features.tokens[:, features.prefix :].unflatten(1, features.grid)
    if not features.pyramid:
        raise ValueError(f'{model_name(model)} has no feature maps; leave out --patches, and use pool "head"')
    return features.pyramid[-1].permute(0, 2, 3, 1)


FEATURES: dict[str, Callable[[Features, Backbone], Tensor]] = {
    "head": _head,
    "cls": _cls,
    "avg": _avg,
    "patches": _patches,
}
"""Functions of the features of a row, by name: the pools, and the patches."""


def _backend_of(draft: Draft, rows: FeatureRows, backend: str, batch_size: int, device: torch.device) -> str:
    """Return the backend of a draft: that of its beginning, or the one that is measured now."""
    if backend != "auto":
        return backend
    if draft.done and draft.backend_file.is_file():
        return draft.backend_file.read_text(encoding="utf-8")
    name = measured_backend(rows, batch_size, device)
    draft.backend_file.write_text(name, encoding="utf-8")
    return name


def measured_backend(rows: FeatureRows, batch_size: int, device: torch.device) -> str:
    """Return the backend that "auto" chooses, measured on noise, or remembered."""
    assert rows.model.preprocessing is not None
    shape = (batch_size, rows.model.preprocessing.in_channels, *rows.model.preprocessing.img_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    return choose(rows, noise, batch_size=batch_size)


@torch.inference_mode()
def _compute(
    draft: Draft, rows: FeatureRows, images: ImageList, *, name: str, batch_size: int, device: torch.device, dtype: str
) -> None:
    """Compute the rows that a draft lacks, batch by batch: the same batches wherever it begins."""
    preprocessing = rows.model.preprocessing
    assert preprocessing is not None
    forward: Forward = BACKENDS[name].build(rows, batch_size=batch_size)
    if len(images) > batch_size:
        forward = whole_batch_first(forward, batch_size)
    left = range(draft.done, len(images))
    console, batches = Console(stderr=True), -(-len(left) // batch_size)
    hidden = not console.is_terminal or len(left) < _SHOWN
    with closing(decoded_batches(zip(left, left, strict=True), images.read, batch_size=batch_size)) as decoded:
        for _, views in track(decoded, "embedding", total=batches, console=console, transient=True, disable=hidden):
            draft.append(*rows_of(views, forward, preprocessing, device, (math.prod(draft.shape[1:]), dtype)))
            del views


def whole_batch_first(forward: Forward, batch_size: int) -> Forward:
    """Make a call on a whole batch the first one, as weights are packed for its rows: the same bits wherever a draft begins."""
    begun = False

    def call(images: Tensor) -> Tensor:
        nonlocal begun
        if not begun and len(images) < batch_size:
            forward(images[:1].expand(batch_size, -1, -1, -1))
        begun = True
        return forward(images)

    return call


def rows_of(
    views: list[View], forward: Forward, preprocessing: Preprocessing, device: torch.device, row: tuple[int, str]
) -> tuple[NDArray[Any], dict[int, str]]:
    """Return the rows of a batch, NaN where there is none, and the reasons. `row` is their width and dtype."""
    failed = {place: view for place, view in enumerate(views) if isinstance(view, str)}
    values = np.full((len(views), row[0]), np.nan, dtype=row[1])
    readable = [view for view in views if isinstance(view, Tensor)]
    if readable:
        found = forward(normalise(torch.stack(readable).to(device), preprocessing)).float().cpu()
        finite = found.isfinite().all(dim=1).tolist()
        with np.errstate(over="ignore"):
            numbers = found.numpy().astype(row[1])
        fits = np.isfinite(numbers).all(axis=1)
        places = [place for place in range(len(views)) if place not in failed]
        for index, place in enumerate(places):
            if fits[index]:
                values[place] = numbers[index]
            else:
                failed[place] = TOO_LARGE if finite[index] else NOT_FINITE
    return values, failed


def load_backbone(weights: str | Path | Backbone, *, img_size: int | Pair | None, device: str) -> Backbone:
    """Return the model on its device. A model that is given stays where and as it is; ValueError for another size of it."""
    if not isinstance(weights, Backbone):
        return anybodys.load(os.fspath(weights), img_size=img_size).to(pick_device(device)).eval()
    if img_size is not None or device != "auto":
        raise ValueError("img_size and device are for weights that are loaded here; load the model so, and leave them out")
    if weights.preprocessing is None:
        raise ValueError("the model does not say what happens to its images; set model.preprocessing")
    return weights


def _val_fraction(weights: str | Path | Backbone) -> float:
    """Return the share of validation images that a run was trained with, or the default: its splits are the same here."""
    if isinstance(weights, Backbone) or not is_run(weights):
        return DataConfig().val_fraction
    return layers.build([layers.read_config(Path(weights, SETTINGS))]).data.val_fraction


def require_choices(*, pool: str, dtype: str, patches: bool, batch_size: int) -> None:
    """Raise ValueError for values that do not exist, or do not go together."""
    pools = [name for name in FEATURES if name != "patches"]
    for option, value, known in (("pool", pool, pools), ("dtype", dtype, list(DTYPES))):
        if value not in known:
            raise ValueError(f'{option} "{value}" is none of {", ".join(known)}{nearest(value, known)}')
    if patches and pool != "head":
        raise ValueError(f'pool "{pool}" makes one embedding of the patches; leave it out, or leave out patches')
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")


def blank(preprocessing: Preprocessing, count: int, device: torch.device) -> Float[Tensor, "B C H W"]:
    """Return images of zeros, in the size of a model."""
    return torch.zeros(count, preprocessing.in_channels, *preprocessing.img_size, device=device)

"""Frozen features: input of a model's head for every image, computed once and cached on disk."""

# N images · B batch · C channels · H W image · E embedding

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.data.batches import eval_batches
from vitrail.data.dataset import Split
from vitrail.data.named import cache_home
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.settings import Preprocessing
from vitrail.weights.run_folder import save_tensors

KEPT_BYTES = 4e9
"""Maximum size of the cache in bytes; beyond it, the least recently used features are removed."""
_LAYOUT = 1  # part of every key: another way to compute the same features takes the next number
_TENSOR, _HASH = "embeddings", "sha256"
_SHOWN = 1000  # images from which on a bar shows how far it is


@dataclass(frozen=True, eq=False)
class LabelledEmbeddings:
    """Embeddings and labels of images, on the CPU."""

    embeddings: Float[Tensor, "N E"]
    labels: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indexes: Tensor) -> LabelledEmbeddings:
        """Select images, by position or by a mask."""
        return LabelledEmbeddings(self.embeddings[indexes], self.labels[indexes])

    def and_those_of(self, other: LabelledEmbeddings) -> LabelledEmbeddings:
        """Concatenate two sets of features."""
        return LabelledEmbeddings(torch.cat([self.embeddings, other.embeddings]), torch.cat([self.labels, other.labels]))


def extract(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    cache: bool = True,
) -> LabelledEmbeddings:
    """Compute float32 embeddings of a split in evaluation view (`augment=None`) by a model that is on `device`.

    The model runs in eval mode without gradients, and its own mode is restored. Embeddings are cached
    ($VITRAIL_CACHE/features, else ~/.cache/vitrail/features): the key is a hash of the weights without the head, the images,
    their preprocessing and the number type. A corrupt cache file is computed again, with a warning. Unreadable images are
    left out, and nothing is cached then.
    Raises ValueError for a split that is empty or not in evaluation view, and for embeddings that are not finite.
    """
    device, images = torch.device(device), split.fingerprint() if cache else None
    path = None
    if images is not None:
        path = cache_home("features") / f"{_key(model, images, preprocessing, device, autocast_dtype)}.safetensors"
        embeddings = _read_cache(path, len(split))
        if embeddings is not None:
            return LabelledEmbeddings(embeddings, split.labels)
    features = _computed(model, split, preprocessing, batch_size, device, autocast_dtype)
    if path is not None and len(features) == len(split):
        _write_cache(features.embeddings, path)
    return features


def embed(model: nn.Module, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
    """Compute the inputs of the heads, concatenated if they differ (`Backbone.embedding`)."""
    embedding: Tensor = model.embedding(images)  # type: ignore[operator]
    return embedding


def _computed(
    model: nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> LabelledEmbeddings:
    console, batches = Console(stderr=True), -(-len(split) // batch_size)
    hidden = not console.is_terminal or len(split) < _SHOWN
    embeddings, labels = [], []
    with in_eval_mode(model), torch.no_grad():  # no inference mode: what is learned from these may need gradients
        raws = eval_batches(split, batch_size=batch_size)
        for raw in track(raws, "features", total=batches, console=console, transient=True, disable=hidden):
            if tuple(raw.images.shape[-2:]) != preprocessing.img_size:
                sides = "x".join(map(str, raw.images.shape[-2:])), "x".join(map(str, preprocessing.img_size))
                raise ValueError(
                    f"images of {sides[0]} pixels, but the model takes {sides[1]}; load the split with augment=None"
                )
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                embedding = embed(model, normalise(raw.images.to(device), preprocessing))
            embeddings.append(embedding.float().cpu())
            labels.append(raw.labels)
    if not labels:
        raise ValueError("there are no images to take features of; the split is empty or none of its files could be read")
    features = LabelledEmbeddings(torch.cat(embeddings), torch.cat(labels))
    if not bool(features.embeddings.isfinite().all()):
        raise ValueError("the model's embeddings are not finite; use fp32, or look whether its weights are")
    return features


# --------------------------------------------------------------------------------------------------------------------
# The cache


def _key(
    model: nn.Module, images: str, preprocessing: Preprocessing, device: torch.device, autocast_dtype: torch.dtype | None
) -> str:
    """Hash everything that the features depend on."""
    digest = hashlib.sha256(repr((_LAYOUT, images, preprocessing, device.type, autocast_dtype)).encode())
    for part in _identity(model):
        digest.update(part)
    return digest.hexdigest()


def model_hash(model: nn.Module) -> str:
    """Return a hash of the layers and tensors that a model's embedding depends on: all but the head."""
    digest = hashlib.sha256()
    for part in _identity(model):
        digest.update(part)
    return digest.hexdigest()


def _identity(model: nn.Module) -> Iterator[bytes | memoryview]:
    """Yield what a model's embedding depends on: layers with their `extra_repr`, and tensors; the head is left out."""
    heads: tuple[str, ...] = getattr(model, "heads", ())

    def in_head(name: str) -> bool:
        return any(name == head or name.startswith(f"{head}.") for head in heads)

    config = getattr(model, "config", None)
    if config is not None and dataclasses.is_dataclass(config):
        yield repr(dataclasses.replace(config, num_classes=0)).encode()  # type: ignore[type-var]
    for name, module in model.named_modules():
        if not (in_head(name) or isinstance(module, nn.Dropout)):  # dropout does nothing in evaluation
            yield f"{name} {type(module).__qualname__}({module.extra_repr()})\n".encode()
    for name, value in model.state_dict().items():
        if not in_head(name):
            yield f"{name} {value.dtype} {tuple(value.shape)}\n".encode()
            yield _bytes(value)


def _bytes(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _read_cache(path: Path, count: int) -> Float[Tensor, "N E"] | None:
    """Read embeddings from a cache file. Return None if it is missing or, with a warning, corrupt."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            stored_hash = (file.metadata() or {}).get(_HASH)
            embeddings: Tensor = file.get_tensor(_TENSOR)
        if len(embeddings) == count and stored_hash == hashlib.sha256(_bytes(embeddings)).hexdigest():
            with contextlib.suppress(OSError):
                os.utime(path)  # it was of use: it stays longer
            return embeddings
        reason = "its hash is another than it says"
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
    warnings.warn(f"the features in {path} are damaged ({reason}); they are computed anew", stacklevel=3)
    return None


def _write_cache(embeddings: Float[Tensor, "N E"], path: Path) -> None:
    """Write a cache file atomically; warn and go on if that fails."""
    if embeddings.nbytes > KEPT_BYTES:
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({_TENSOR: embeddings}, draft, metadata={_HASH: hashlib.sha256(_bytes(embeddings)).hexdigest()})
        os.replace(draft, path)
        _make_room(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        warnings.warn(f"the features can't be kept in {path.parent} ({str(error).splitlines()[0]})", stacklevel=3)


def _make_room(folder: Path) -> None:
    """Remove the least recently used files until the others fit."""
    files = sorted(((path.stat(), path) for path in folder.glob("*.safetensors")), key=lambda item: -item[0].st_mtime_ns)
    room = KEPT_BYTES
    for status, path in files:
        room -= status.st_size
        if room < 0:
            path.unlink(missing_ok=True)

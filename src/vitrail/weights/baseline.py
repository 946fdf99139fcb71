"""Load baselines: weights of a run, or of the library, for other channels and classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from vitrail.config import pair
from vitrail.models import Baseline, create_baseline
from vitrail.models.baseline import BaselineConfig, published_classes
from vitrail.weights.adapt import adapt_channels
from vitrail.weights.preprocess import preprocessing_for
from vitrail.weights.read import Checkpoint
from vitrail.weights.receipt import Entry, Receipt, Status

FIELDS = tuple(field.name for field in dataclasses.fields(BaselineConfig) if field.name != "name")


def published_baseline(name: str, changes: Mapping[str, Any]) -> Baseline:
    """Return the model with its library's default weights. Raises ValueError as `create_baseline`, and for fields of a ViT."""
    check_fields(name, changes)
    model = create_baseline(name, pretrained=True, **changes).eval()
    own_head = model.num_classes == published_classes(name)
    own_stem = model.config.in_channels == 3
    entries = []
    for key, value in model.net.state_dict().items():
        head, stem = (layer_of(key) in layers for layers in (model.heads, model.stems))
        status: Status = (
            "new" if head and not own_head else "adapted" if stem and key.endswith(".weight") and not own_stem else "exact"
        )
        note = f"3 -> {model.config.in_channels} channels" if status == "adapted" else ""
        entries.append(Entry(key, status, value.numel(), note, head=head))
    model.receipt = Receipt(
        origin=model.config.library,
        file=name,
        sha256=None,
        licence=None,
        entries=tuple(entries),
        preprocessing=f"{model.config.library}'s, for these weights",
    )
    return model


def trained_baseline(
    config: BaselineConfig, checkpoint: Checkpoint, changes: Mapping[str, Any], *, channels: Literal["repeat", "keep"]
) -> Baseline:
    """Return the model of a run, in evaluation mode: a new number of classes gets a fresh head, other channels an adapted stem.

    Raises ValueError for fields of a ViT, and for a file that is not this model's.
    """
    check_fields(config.name, changes)
    model = create_baseline(**dataclasses.asdict(dataclasses.replace(config, **changes)))
    state: dict[str, Tensor] = {}
    entries = []
    for key, slot in model.net.state_dict().items():
        value, status, note = fitted(model, key, slot, checkpoint, channels)
        state[key] = slot if value is None else value
        entries.append(Entry(key, status, slot.numel(), note, head=layer_of(key) in model.heads))
    entries += [Entry(key, "dropped", checkpoint.tensors[key].numel()) for key in checkpoint.tensors if key not in state]
    model.net.load_state_dict(state, strict=True)
    given = preprocessing_for(
        img_size=pair(model.config.img_size),
        in_channels=model.config.in_channels,
        num_classes=model.num_classes if model.num_classes == config.num_classes else -1,
        config=checkpoint.config,
        preprocessor=checkpoint.preprocessor,
        origin=config.library,
        file_img_size=pair(config.img_size),
    )
    model.preprocessing, model.classes, model.multi_label = given.preprocessing, given.classes, given.multi_label
    model.receipt = Receipt(
        origin=config.name,
        file=checkpoint.file,
        sha256=checkpoint.sha256,
        licence=checkpoint.licence,
        entries=tuple(entries),
        notes=checkpoint.notes,
        preprocessing=given.source,
    )
    return model.eval()


def fitted(
    model: Baseline, key: str, slot: Tensor, checkpoint: Checkpoint, channels: Literal["repeat", "keep"]
) -> tuple[Tensor | None, Status, str]:
    """Return the file's value for one tensor (None: a fresh one), its status and what was changed."""
    value, layer = checkpoint.tensors.get(key), layer_of(key)
    if value is not None and value.shape == slot.shape:
        return value, "exact", ""
    if layer in model.heads:
        return None, "new", ""
    if value is None:
        raise ValueError(f"{checkpoint.file} has no {key}, so it is not of {model.config.name}; restore it from a copy")
    if layer in model.stems and value.shape[2:] == slot.shape[2:]:
        note = f"{value.shape[1]} -> {slot.shape[1]} channels"
        return adapt_channels(value, to=slot.shape[1], how=channels), "adapted", note
    theirs, ours = ("x".join(map(str, shape)) for shape in (value.shape, slot.shape))
    raise ValueError(
        f"{key} is {theirs} in {checkpoint.file} and {ours} in the {model.config.name} that is asked for; "
        "leave img_size as the run has it"
    )


def check_fields(name: str, changes: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that a baseline does not have."""
    for field in changes:
        if field not in FIELDS:
            raise ValueError(f"{field} is a part of a ViT, and {name} is none: it takes {', '.join(FIELDS)}; leave it out")


def layer_of(key: str) -> str:
    """Return the layer of a tensor."""
    return key.rpartition(".")[0]

"""Load runs of any family: the saved weights, adapted to other channels and classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from vitrail.models.backbone import Backbone
from vitrail.models.families import build
from vitrail.models.receipt import Entry, Status
from vitrail.settings import configured
from vitrail.settings.families import name_of
from vitrail.weights.adapt import adapt_channels
from vitrail.weights.card import attach_card
from vitrail.weights.read import Checkpoint


def load_trained(
    checkpoint: Checkpoint,
    known: Any,
    changes: Mapping[str, Any],
    *,
    channels: Literal["repeat", "keep"],
    strict: bool = True,
) -> Backbone:
    """Load the model of a run, in evaluation mode: a new number of classes gets a fresh head, other channels an adapted stem.

    `known` is the run's config. Raises ValueError for a field that its family does not have, and for a file that is not this
    model's.
    """
    model = build(configured(known, dict(changes)))
    stored, name = model.stored(), name_of(known)
    heads, stems = _tensors_of(model, model.heads), _tensors_of(model, model.stems)
    state: dict[str, Tensor] = {}
    entries = []
    for key, slot in stored.state_dict(keep_vars=True).items():
        head, value = id(slot) in heads, checkpoint.tensors.get(key)
        status: Status = "exact"
        note = ""
        if value is None or value.shape != slot.shape:
            if head or (value is None and not strict):
                value, status = slot.detach(), "new"
            elif value is None:
                raise ValueError(f"{checkpoint.file} has no {key}, so it is not of {name}; restore it from a copy")
            elif id(slot) in stems and value.shape[2:] == slot.shape[2:]:
                note, status = f"{value.shape[1]} -> {slot.shape[1]} channels", "adapted"
                value = adapt_channels(value, to=slot.shape[1], how=channels)
            else:
                theirs, ours = ("x".join(map(str, shape)) for shape in (value.shape, slot.shape))
                raise ValueError(
                    f"{key} is {theirs} in {checkpoint.file} and {ours} in the {name} that is asked for; "
                    "leave img_size as the run has it"
                )
        state[key] = value
        entries.append(Entry(key, status, slot.numel(), note, head=head))
    entries += [Entry(key, "dropped", checkpoint.tensors[key].numel()) for key in checkpoint.tensors if key not in state]
    stored.load_state_dict(state, strict=True)
    attach_card(model, checkpoint, known, entries, origin=name)
    return model.eval()


def _tensors_of(model: Backbone, paths: tuple[str, ...]) -> set[int]:
    """Return the ids of the parameters and buffers of some modules."""
    modules: list[nn.Module] = [model.get_submodule(path) for path in paths]
    return {id(value) for module in modules for value in module.state_dict(keep_vars=True).values()}

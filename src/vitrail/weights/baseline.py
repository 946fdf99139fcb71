"""Baselines with weights: a run's, or its library's own, for the channels and classes that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.models.baseline import Baseline, create_baseline, published_classes
from vitrail.models.receipt import Entry, Receipt, Status


def published_baseline(name: str, changes: Mapping[str, Any]) -> Baseline:
    """Return the model with its library's default weights. Raises ValueError as `create_baseline`, and for fields of a ViT."""
    model = create_baseline(name, pretrained=True, **changes).eval()
    own_head = model.num_classes == published_classes(name)
    own_stem = model.config.in_channels == 3
    entries = []
    for key, value in model.net.state_dict().items():
        head, stem = (f"net.{layer_of(key)}" in layers for layers in (model.heads, model.stems))
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


def layer_of(key: str) -> str:
    """Return the layer of a tensor."""
    return key.rpartition(".")[0]

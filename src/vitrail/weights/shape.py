"""Settings of a model that is given by a name, a run folder or a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vitrail.models.receipt import Receipt
from vitrail.settings import Settings, layers
from vitrail.settings.families import name_of
from vitrail.weights.load import load, named_family
from vitrail.weights.run_folder import SETTINGS


def resolve_model(
    source: str, *changes: layers.Layer, revision: str | None = None, strict: bool = True
) -> tuple[Settings, Receipt | None]:
    """Return the settings of a model with `changes` above them, and the receipt of a checkpoint.

    `source` is a name such as "B/16" or "torchvision:resnet50", a run folder, or anything that `load` takes, at a `revision`.
    Raises ValueError for a source that can't be read and for settings that make no model.
    """
    receipt, below = None, {"model": {"name": source}}
    if Path(source, SETTINGS).is_file():
        below = layers.read_config(Path(source, SETTINGS))
    elif named_family(source) is None:
        model = load(source, revision=revision, strict=strict, **layers.model_fields(*changes))
        assert isinstance(model.receipt, Receipt)
        receipt, below = model.receipt, {"model": {**dataclasses.asdict(model.config), "name": name_of(model.config)}}
        changes = tuple({section: layer[section] for section in layer if section != "model"} for layer in changes)
    return layers.build([below, *changes]), receipt

"""Smaller models of a recipe, for machines on which its own model sees too few images in a run of minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitrail.settings import layers
from vitrail.settings.run import Settings

KEY = "smaller"
"""Key of the list in a recipe, from larger to smaller; each entry is a layer on top of the recipe's."""
SECTIONS = ("model", "augment", "optim", "train")
"""Sections that an entry sets: the data is open before a smaller model is taken."""


def read_smaller(recipe: str) -> tuple[dict[str, Any], ...]:
    """Return the smaller models of a recipe, from larger to smaller.

    A recipe without a list has that of the recipe it extends, unless it names another model. Raises ValueError for an unknown
    recipe, an entry that is no mapping of `SECTIONS`, and an unknown field.
    """
    written = layers.recipe_file(recipe)
    if KEY not in written:
        model = written.get("model") or {}
        inherits = "extends" in written and not isinstance(model, str) and "name" not in model
        return read_smaller(written["extends"]) if inherits else ()
    entries, rule = written[KEY], f"recipe {recipe}: {KEY} is a list of sections, as in `{KEY}: [{{model: {{depth: 4}}}}]`"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry for entry in entries):
        raise ValueError(f"{rule}; an entry is a mapping")
    if other := [section for entry in entries for section in entry if section in layers.SECTIONS and section not in SECTIONS]:
        raise ValueError(f"{rule}; an entry sets {', '.join(SECTIONS)}, and not {other[0]}")
    try:
        return tuple(layers.merge(entry) for entry in entries)
    except ValueError as error:
        raise ValueError(f"recipe {recipe}: {KEY}: {error}") from error


def apply_smaller(settings: Settings, smaller: Mapping[str, Any], requested: Mapping[str, Any]) -> Settings:
    """Return resolved settings with a smaller model of the recipe; the fields in `requested` stay.

    Raises ValueError where the two contradict each other.
    """
    layer = {
        section: {key: value for key, value in fields.items() if key not in requested.get(section, {})}
        for section, fields in smaller.items()
    }
    return layers.build([dataclasses.asdict(settings), layer])

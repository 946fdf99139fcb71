"""Checkpoints of the families beside the plain ViT: recognise, infer, adapt every tensor, load, and attach the card.

A family says in its own file how its shape is read from tensors and how they are resized (`FamilyReader`, a row of
`weights.load.FAMILY_READERS`); its layouts, in the files of the libraries, say what they are called there.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vitrail.models.backbone import Backbone
from vitrail.models.families import build, build_on_meta
from vitrail.models.receipt import Entry, Status
from vitrail.settings import configured
from vitrail.settings.families import family_of_config
from vitrail.weights.adapt import adapt_channels, copy_like
from vitrail.weights.card import attach_card
from vitrail.weights.libraries import LIBRARIES
from vitrail.weights.library import FamilyLayout
from vitrail.weights.read import Checkpoint
from vitrail.weights.recognise import WRAPPERS
from vitrail.weights.targets import rename_family

LAYOUTS = tuple(layout for library in LIBRARIES.values() for layout in library.family_layouts)


class FamilyReader(NamedTuple):
    """Functions by which a family's checkpoints are read."""

    infer: Callable[[FamilyFile], Any]
    """Infer the config of the model in a file. Raises ValueError, with the answers, for what the file doesn't determine."""
    resize: Callable[[str, Tensor, Any, Any], tuple[Tensor, str]] = lambda name, value, stored, config: (value, "")
    """Resize a tensor of a name from the stored config to another: the value, and a note where it changed."""
    computed: Callable[[str, Any], Tensor | None] = lambda name, config: None
    """Compute a tensor of a name that files may omit; None for one that they have."""
    implied: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] = lambda stored, changes: {}
    """Fields of the config that follow from those that a caller changes."""


@dataclass(frozen=True)
class FamilyFile:
    """A file of a family's layout, read by our names."""

    checkpoint: Checkpoint
    layout: FamilyLayout
    keys: Mapping[str, str]
    """The file's keys, by the library's names: without wrappers and prefix."""
    overrides: Mapping[str, Any]
    """Fields that the caller states, which answer questions."""

    @property
    def stated(self) -> Mapping[str, Any]:
        """Fields of the family's config that config.json states."""
        size = image_size(self.checkpoint.config)
        return {**({} if size is None else {"img_size": size}), **self.layout.fields(self.checkpoint.config)}

    def sources(self, name: str) -> tuple[str, ...] | None:
        """Return the keys of the tensors from which ours of this name is made; None if the file has not all of them."""
        theirs = [self.key(one) for one in self.layout.names(name)]
        return None if None in theirs else tuple(one for one in theirs if one is not None)

    def key(self, theirs: str) -> str | None:
        """Return the file's key of a library's name; None if it has none."""
        return self.keys.get(theirs, self.keys.get(theirs.removeprefix(self.layout.encoder)))

    def __contains__(self, name: str) -> bool:
        return self.sources(name) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of our tensor of this name. Raises ValueError if the file has none."""
        return tuple(self.read(name, {key: torch.empty(shape, device="meta") for key, shape in self._shapes(name)}).shape)

    def read(self, name: str, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return our tensor of this name. Raises ValueError if the file has none."""
        form, tensors = self.layout.form(name), self.checkpoint.tensors if tensors is None else tensors
        parts = [tensors[key] for key in self.require(name)]
        if form is not None:
            return form.read(parts)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def count(self, pattern: str) -> int:
        """Return how many tensors of a pattern such as "blocks.{}.norm1.weight" there are, from 0 on."""
        at = 0
        while pattern.format(at) in self:
            at += 1
        return at

    def require(self, name: str) -> tuple[str, ...]:
        """Return `sources`. Raises ValueError if the file has not all of them."""
        keys = self.sources(name)
        if keys is None:
            missing = next(one for one in self.layout.names(name) if self.key(one) is None)
            noun = family_of_config(self.layout.family()).noun
            raise ValueError(f"{self.checkpoint.file} has no {missing}, so it is not all of {noun}; give a whole one")
        return keys

    def _shapes(self, name: str) -> list[tuple[str, tuple[int, ...]]]:
        shapes = self.checkpoint.shapes
        return [(key, shapes[key]) for key in self.require(name)]


def find_layout(
    shapes: Mapping[str, tuple[int, ...]],
    layouts: tuple[FamilyLayout, ...] = LAYOUTS,
    *,
    config: Mapping[str, Any] = MappingProxyType({}),
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[FamilyLayout, str] | None:
    """Return the layout whose names a file has, and the prefix before them; None if there is none.

    `shapes` are those of the file's tensors, of which none is read. `config` is the config.json beside the file; `overrides`
    are fields that the caller states.
    """
    actual = {re.sub(WRAPPERS, "", name): shape for name, shape in shapes.items()}
    for layout in layouts:
        if not layout.claims(config, overrides) or any(re.search(layout.lacks, name) for name in actual):
            continue
        for bare in dict.fromkeys(("", layout.encoder)):
            shown = [one.removeprefix(bare) for name in layout.shows for one in layout.names(name)]
            for prefix in sorted((one.removesuffix(shown[0]) for one in actual if one.endswith(shown[0])), key=len):
                if prefix[-1:] not in ("", ".") or not all({f"{prefix}{one}", one} & actual.keys() for one in shown):
                    continue  # a head stands without the prefix
                if layout.fits(lambda name, before=prefix: actual[f"{before}{name}"]):  # type: ignore[misc]
                    return layout, prefix
    return None


def recognise_family(checkpoint: Checkpoint, overrides: Mapping[str, Any]) -> type[Any] | None:
    """Return the config class of the family whose tensors a checkpoint has; None for those of a plain ViT, or of none."""
    match = find_layout(checkpoint.shapes, config=checkpoint.config, overrides=overrides)
    return None if match is None else match[0].family


def load_family(
    reader: FamilyReader,
    checkpoint: Checkpoint,
    known: Any | None,
    changes: Mapping[str, Any],
    *,
    channels: Literal["repeat", "keep"] = "repeat",
    strict: bool = True,
) -> Backbone:
    """Load a model of a family from a checkpoint, in evaluation mode; see `vitrail.load`.

    `known` is the config of a model of ours, whose names are ours. Raises ValueError for tensors that are not all of the
    model (with `strict=False`, fresh weights fill the gaps), or that don't fit the fields that were asked for.
    """
    keys = {re.sub(WRAPPERS, "", key): key for key in checkpoint.tensors}
    if known is None:
        match = find_layout(checkpoint.shapes, config=checkpoint.config, overrides=changes)
        assert match is not None, "a reader is chosen by its layout"
        layout, prefix = match
        file = FamilyFile(checkpoint, layout, {name.removeprefix(prefix): key for name, key in keys.items()}, changes)
        stored = reader.infer(file)
    else:
        stored = known
    config = configured(stored, {**changes, **reader.implied(stored, changes)})
    model = build_on_meta(config)
    if known is not None:
        layout = run_layout(model, keys.keys())
        file = FamilyFile(checkpoint, layout, keys, changes)
    fresh = build(config).state_dict() if config.num_classes != stored.num_classes or not strict else {}
    state, entries = _adapted(model, file, stored, reader, fresh, channels)
    model.load_state_dict(state, strict=True, assign=True)
    assumed = tuple(text for field, text in layout.assumes.items() if field not in changes)
    attach_card(model, checkpoint, stored, entries, origin=f"{layout.name}, {type(model).__name__}", assumed=assumed)
    return model.eval()


def run_layout(model: Backbone, keys: Set[str]) -> FamilyLayout:
    """Return the layout of the tensors of a run or of a model of ours, by their keys: our names, or else a library's.

    A run folder that a library opens too has its names.
    """
    family, names = type(model.config), model.state_dict().keys()
    ours = FamilyLayout(family, "Vitrail", shows=())
    theirs = [dataclasses.replace(layout, name="Vitrail") for layout in LAYOUTS if layout.family is family]
    return max((ours, *theirs), key=lambda layout: sum(keys >= {*layout.names(name)} for name in names))  # the first of equals


def _adapted(
    model: Backbone,
    file: FamilyFile,
    stored: Any,
    reader: FamilyReader,
    fresh: Mapping[str, Tensor],
    channels: Literal["repeat", "keep"],
) -> tuple[dict[str, Tensor], list[Entry]]:
    """Return every tensor of the model, and the receipt's entries. `fresh` has those that may stand in for missing ones."""
    config, state, entries, used = model.config, dict[str, Tensor](), list[Entry](), set[str]()
    heads, stems = (tuple(f"{path}." for path in paths) for paths in (model.heads, model.stems))
    for name, target in model.state_dict().items():
        head, keys = name.startswith(heads), file.sources(name)
        new_head = head and config.num_classes != stored.num_classes
        used.update(keys or ())
        if new_head or (keys is None and name in fresh):
            state[name] = fresh[name]
            entries.append(Entry(name, "new", target.numel(), head=head))
            continue
        computed = reader.computed(name, config) if keys is None else None
        if computed is not None:
            state[name] = copy_like(computed, target)
            entries.append(Entry(name, "new", target.numel(), "computed, as its code does"))
            continue
        value = file.read(name)
        status: Status = "exact"
        note = "" if len(file.layout.names(name)) == 1 else "parts joined"
        if name.startswith(stems) and value.ndim == 4 and value.shape[1] != target.shape[1]:
            status, note = "adapted", f"{value.shape[1]} -> {target.shape[1]} channels"
            value = adapt_channels(value, to=target.shape[1], how=channels)
        resized, change = reader.resize(name, value, stored, config)
        if change:
            value, status, note = resized, "resized", change
        if value.shape != target.shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (value.shape, target.shape))
            where = f"{name} is {theirs} in {file.checkpoint.file}"
            raise ValueError(f"{where}, and the model wants {ours}; leave the field out that asks for it")
        state[name] = copy_like(value, target)
        entries.append(Entry(name, status, value.numel(), note, head=head))
    for key, shape in file.checkpoint.shapes.items():
        if key not in used and not re.search(file.layout.ignored, key):
            entries.append(Entry(key, "dropped", math.prod(shape), head="head" in key))
    return state, entries


def export_state(model: Backbone, library: str) -> dict[str, Tensor]:
    """Return a model's tensors under a library's names."""
    return rename_family(model, next(one for one in LAYOUTS if (one.family, one.name) == (type(model.config), library)))


def image_size(config: Mapping[str, Any]) -> int | tuple[int, int] | None:
    """Return the image size in a config.json of timm or transformers."""
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, Mapping) else None
    if isinstance(size, list | tuple) and len(size) == 3:
        return int(size[1]), int(size[2])
    side = config.get("image_size")
    if isinstance(side, list | tuple) and len(side) == 2:
        return int(side[0]), int(side[1])
    return side if isinstance(side, int) else None

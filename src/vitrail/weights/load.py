"""Load weights from any source: read, recognise, infer, adapt, load, and attach the receipt."""

# D width · C channels · P patch · L patches

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models import ViT, create_model
from vitrail.models.backbone import Backbone
from vitrail.models.positions import resize_patch, resize_positions, sincos_2d
from vitrail.models.receipt import Entry, Receipt, Status
from vitrail.settings import Pair, ViTConfig, choices_of_a_model, configured, nearest, pair
from vitrail.settings.baseline import BaselineConfig, is_baseline
from vitrail.settings.families import Family, check_fields, family_of, name_of, parse_name, require_fields
from vitrail.settings.swin import SwinConfig
from vitrail.text import printable_errors
from vitrail.weights import hub
from vitrail.weights.adapt import adapt_channels
from vitrail.weights.baseline import published_baseline
from vitrail.weights.infer import Inferred, infer, refuse_foreign
from vitrail.weights.libraries.vitrail import OURS
from vitrail.weights.preprocess import preprocessing_for
from vitrail.weights.read import Checkpoint, read
from vitrail.weights.recognise import LAYOUTS, Recognised, recognise, unstack
from vitrail.weights.run_folder import CONFIG, SETTINGS, read_run
from vitrail.weights.swin import is_swin, load_swin
from vitrail.weights.trained import load_trained

BACKBONE_SHARE = 0.95
"""Minimum share of the backbone's parameters that must come from the file."""
HEADS = ("head.", "head_dist.", "pre_logits.")
Channels = Literal["repeat", "keep"]
GELUS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
"""Activation by class of timm, torch and open_clip."""


@printable_errors()
def load(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module,
    *,
    num_classes: int | None = None,
    img_size: int | Pair | None = None,
    in_channels: int | None = None,
    revision: str | None = None,
    strict: bool = True,
    channels: Channels = "repeat",
    **config_changes: Any,
) -> Backbone:
    """Load a model with weights from any source, for a given size, channels and classes, in evaluation mode.

    `source` is a Hub id ("timm/vit_small_patch16_224.augreg_in21k", at a `revision`), a file (.safetensors, .npz, .pth,
    .pt, .bin), a folder (a run, or one that transformers or timm wrote), a state dict, a model of another library, or a
    name: of "B/16" the weights are random, of the baselines "torchvision:resnet50" and "timm:…" their library's own. Other
    settings are those of the file. Any field of ViTConfig can be changed, and answers what no tensor determines
    (`num_heads=8`). Positions are resized as timm does, patches as FlexiViT does.
    `channels` selects how the stem adapts to others: "repeat" scales its filters over all, "keep" leaves the first as they
    are and initialises the rest to zero.

    `model.receipt` states the status of every tensor; `model.preprocessing` and `model.classes` come with the weights.
    Raises ValueError, in one line, for a source that can't be read, a checkpoint that is not a plain ViT or does not
    determine its shape, and if less than 95 % of the backbone comes from the file (with `strict=False`, a warning).
    """
    arguments = {"num_classes": num_classes, "img_size": img_size, "in_channels": in_channels}
    changes = {name: value for name, value in arguments.items() if value is not None} | config_changes
    check_fields(changes)  # a field that does not exist is named before anything is fetched
    check_choices(changes)
    return open_weights(source, revision=revision).build(changes, channels=channels, strict=strict)


@dataclass(frozen=True, eq=False)
class OpenedWeights:
    """A source of weights that is read once, and from which models of several sizes can be built."""

    source: Any
    """As it was given to `open_weights`."""
    checkpoint: Checkpoint | None
    """Tensors, and the files beside them; None for the name of a model."""
    config: Any | None
    """Config that says everything: that of a run, or of a model of ours; None for other checkpoints."""

    def build(self, changes: Mapping[str, Any], *, channels: Channels = "repeat", strict: bool = True) -> Backbone:
        """The model, with fields of its config changed. See `load`."""
        if self.checkpoint is None:
            name = str(self.source)
            require_fields(name, changes)
            reader = READERS.get(family_of(name).config)
            return fresh(name, changes) if reader is None or reader.published is None else reader.published(name, changes)
        if self.config is not None:
            require_fields(name_of(self.config), changes)
            reader = READERS.get(type(self.config), Reader(load_trained))
        else:
            reader = next((one for one in READERS.values() if one.recognise(self.checkpoint.tensors)), READERS[ViTConfig])
        return reader.load(self.checkpoint, self.config, changes, channels=channels, strict=strict)


@printable_errors()
def open_weights(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module, *, revision: str | None = None
) -> OpenedWeights:
    """Read what `load` takes, without building a model. Raises ValueError, in one line, for a source that can't be read."""
    if named_family(source) is not None:
        return OpenedWeights(source, None, None)
    return OpenedWeights(source, *opened(source, revision))


def load_vit(
    checkpoint: Checkpoint, known: ViTConfig | None, changes: Mapping[str, Any], *, channels: Channels, strict: bool
) -> ViT:
    """Load a plain ViT from a checkpoint; `known` is the config of a model of ours."""
    tensors = unstack(checkpoint.tensors)
    theirs = checkpoint.shapes if tensors is checkpoint.tensors else {name: tuple(t.shape) for name, t in tensors.items()}
    match = recognise(tensors, (OURS,) if known else LAYOUTS)
    if strict:
        refuse_foreign(match)
    overrides = {"heads": match.heads(theirs), **changes}
    stored = (
        of_ours(known)
        if known
        else infer(match.shapes(theirs), match.layout, config=checkpoint.config, overrides=overrides, prefix=match.prefix)
    )
    config = configured(stored.config, dict(changes))
    with torch.device("meta"):
        model = ViT(config)
    state, entries = Adaptation(model, stored, match, tensors, theirs, channels, strict).made()
    if strict:
        refuse_gaps([entry for entry in entries if entry.name not in match.sources], stored.config, checkpoint.file)
    model.load_state_dict(state, strict=True, assign=True)  # the one place that loads
    model.reset_parameters(only={entry.name for entry in entries if entry.fresh})
    return attach_card(model.eval(), entries, checkpoint, match, stored, strict=strict)


class Load(Protocol):
    """Function that builds a family's model with the weights of a checkpoint; `known` is its config, of a run."""

    def __call__(
        self, checkpoint: Checkpoint, known: Any, changes: Mapping[str, Any], *, channels: Channels, strict: bool
    ) -> Backbone:
        """Return the model, in evaluation mode, with its receipt."""


class Reader(NamedTuple):
    """Functions that read checkpoints of one family."""

    load: Load
    recognise: Callable[[Mapping[str, Any]], bool] = lambda tensors: False
    """Whether tensors of these names, which no config of ours describes, are of this family."""
    published: Callable[[str, Mapping[str, Any]], Backbone] | None = None
    """Weights that a name alone stands for; None: a name has random weights."""


READERS: dict[type[Any], Reader] = {  # by the family's config; a family that is not here is read by `load_trained`
    SwinConfig: Reader(load_swin, recognise=is_swin),
    BaselineConfig: Reader(load_trained, published=published_baseline),
    ViTConfig: Reader(load_vit),
}


# --------------------------------------------------------------------------------------------------------------------
# Sources


def check_choices(changes: Mapping[str, Any]) -> None:
    """Raise ValueError for a string that is no choice of its field."""
    for name, choices in choices_of_a_model().items():
        if name in changes and changes[name] not in choices:
            suggestion = nearest(str(changes[name]), list(choices))
            raise ValueError(f'{name} "{changes[name]}" is none of {", ".join(choices)}{suggestion}')


def is_name(source: Any) -> bool:
    """Return whether a source is a name such as "B/16", whose weights are random, and not an existing file."""
    family = named_family(source)
    return family is not None and (family.config not in READERS or READERS[family.config].published is None)


def named_family(source: Any) -> Family | None:
    """Return the family of a source that is a model's name; None for a file, a folder, a Hub id and any other text."""
    if not isinstance(source, str) or (os.path.exists(source) and not is_baseline(source)):
        return None
    try:
        return family_of(source)
    except ValueError:
        return None


def fresh(name: str, changes: Mapping[str, Any]) -> Backbone:
    """Build a model with random weights."""
    model = create_model(name, **changes)
    entries = (Entry(key, "new", value.numel()) for key, value in model.state_dict().items())
    model.receipt = Receipt(origin="random weights", file=name, sha256=None, licence=None, entries=tuple(entries))
    return model.eval()


def opened(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module, revision: str | None
) -> tuple[Checkpoint, Any | None]:
    """Read the tensors of a source, and the config of a run or of a model of ours, which states everything."""
    if isinstance(source, Backbone):
        images = {} if source.preprocessing is None else {"preprocessing": dataclasses.asdict(source.preprocessing)}
        known = {"label_names": list(source.classes), "multi_label": source.multi_label}
        config = {**known, **({"vitrail": images} if images else {})}
        checkpoint = read(source.stored().state_dict())
        return dataclasses.replace(checkpoint, file=f"a {type(source).__name__}", config=config), source.config
    if isinstance(source, nn.Module):
        return dataclasses.replace(read(source.state_dict()), file=f"a {type(source).__name__}", config=config_of(source)), None
    if isinstance(source, Mapping):
        return read(source), None
    path = Path(source)
    if not path.exists():
        if not hub.looks_like_repo(str(source)):
            raise ValueError(f'"{source}" does not exist, and is neither a Hub id nor a name of a model{suggest(str(source))}')
        path = fetched(str(source), revision)
        checkpoint = dataclasses.replace(read(path), file=str(source))
        hub.check(path, checkpoint.sha256 or "")
        return checkpoint, read_run(path).config if is_run(path) else None
    if path.is_dir() and is_run(path):
        run = read_run(path)
        return read(path, expected_sha256=run.sha256), run.config
    return read(path), None


def suggest(text: str) -> str:
    """Return the error of what looks like a model's name, else what could be given."""
    try:
        parse_name(text)
    except ValueError as error:
        if text.count("/") <= 1 and "." not in text:
            return f" ({error})"
    return '; give a run, a weights file, a folder of one, "owner/name", or a name such as "B/16"'


def fetched(repo: str, revision: str | None) -> Path:
    """Download a Hub repository and return its folder. An error mentions that no path of that name exists."""
    try:
        return hub.fetch(repo, revision=revision)
    except ValueError as error:
        if repo.count("/") == 1 and ":" not in repo:
            raise ValueError(f"no file or folder {repo} is here, and as a Hub id: {error}") from error
        raise


def config_of(model: nn.Module) -> dict[str, Any]:
    """Return a config.json for a live model: transformers' own, or timm's form, from attributes of its modules."""
    parts = list(model.modules())
    configs: Iterator[Any] = (getattr(part, "config", None) for part in parts)
    if config := next((config for config in configs if hasattr(config, "to_dict")), None):  # transformers
        return dict(config.to_dict())

    def first(kind: type, *names: str) -> Any:
        values = (getattr(part, name, None) for part in parts for name in names)
        return next((value for value in values if isinstance(value, kind)), None)

    pretrained_cfg = first(dict, "pretrained_cfg") or {}
    grids = (getattr(part, "grid_size", None) for part in parts)  # timm's PatchEmbed, open_clip's towers
    patches = (getattr(part, "patch_size", None) for part in parts)
    grid, patch = (next((pair_of(value) for value in values if pair_of(value)), None) for values in (grids, patches))
    image_size = (grid[0] * patch[0], grid[1] * patch[1]) if grid and patch else first(int, "image_size")
    tanh = any(getattr(part, "approximate", "none") == "tanh" for part in parts)  # torch's GELU
    arguments = {
        "img_size": image_size,
        "num_heads": first(int, "num_heads", "heads"),
        "global_pool": first(str, "global_pool"),
        "pool_include_prefix": first(bool, "pool_include_prefix"),
        "norm_eps": next((part.eps for part in parts if isinstance(part, nn.LayerNorm)), None),
        "act_layer": "gelu_tanh"
        if tanh
        else next((GELUS[k] for k in (type(part).__name__ for part in parts) if k in GELUS), None),
    }
    return {
        "architecture": pretrained_cfg.get("architecture", ""),
        "pretrained_cfg": dict(pretrained_cfg),
        "model_args": {name: value for name, value in arguments.items() if value is not None},
    }


def pair_of(value: Any) -> Pair | None:
    """Return two integers of a library's attribute, or one for both; None for any other value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    both = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(side, int) for side in value)
    return (value[0], value[1]) if both else None


def is_run(folder: Path) -> bool:
    """Return whether `vitrail train` or `save_model` wrote the folder."""
    try:
        return (folder / SETTINGS).exists() or '"vitrail"' in (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def of_ours(cfg: ViTConfig) -> Inferred:
    """Return the description of a model of ours, whose config states everything."""
    grid = tuple(side // patch for side, patch in zip(pair(cfg.img_size), pair(cfg.patch_size), strict=True))
    placed = () if cfg.no_embed_class else ("cls",) * cfg.class_token + ("dist",) * cfg.dist_token
    return Inferred(cfg, (grid[0], grid[1]), placed, ())


# --------------------------------------------------------------------------------------------------------------------
# Tensors


@dataclass
class Adaptation:
    """Adaptation of a file's tensors to a model for other images."""

    model: ViT
    """On the meta device: its shapes are the target."""
    stored: Inferred
    match: Recognised
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    """Of the file's tensors: those that are dropped are not read."""
    channels: Channels
    strict: bool
    _used: set[str] = field(default_factory=set)

    def made(self) -> tuple[dict[str, Tensor], tuple[Entry, ...]]:
        """Return every tensor of the model, and its entry in the receipt; one copy of the weights in all."""
        state: dict[str, Tensor] = {}
        entries: list[Entry] = []
        for name, slot in self.model.state_dict().items():
            value, status, note = self.one(name, slot)
            state[name] = owned(value, slot)
            entries.append(Entry(name, status, slot.numel(), note, head=name.startswith(HEADS)))
        return state, (*entries, *self.dropped())

    def one(self, name: str, slot: Tensor) -> tuple[Tensor | None, Status, str]:
        """Return the value for one tensor of the model (None: fresh), its status and what was changed."""
        if name == "pos_embed":
            return self.positions(slot)
        weight = f"{name.removesuffix('bias')}weight" if name.endswith(".bias") else None
        if weight is not None and weight not in self._used:  # a layer is made afresh as a whole
            return None, "new", ""
        if name not in self.match.sources:
            zero = slot.new_zeros(slot.shape, device="cpu")
            return (None, "new", "") if weight is None else (zero, "new", "zero: the file has none")
        value = self.match.sources[name].read(self.tensors)
        if slot.is_floating_point() and (not value.is_floating_point() or value.itemsize == 1):
            raise ValueError(f"{name} holds numbers of type {value.dtype}: quantised weights need the code that made them")
        status: Status = "exact"
        notes: list[str] = []
        if name == "patch_embed.proj.weight" or name == "patch_embed.stem.0.weight":
            value, status, notes = self.stem(value, slot)
        elif name in TOKENS and value.shape == slot.shape:
            moved = self.moved(TOKENS[name])
            if moved is not None:
                value, status, notes = value + moved, "adapted", ["its position added"]
        if value.shape != slot.shape:
            if self.strict and not self.replaced(name):
                theirs, ours = ("x".join(map(str, shape)) for shape in (value.shape, slot.shape))
                raise ValueError(
                    f"{name} is {theirs} in the file and {ours} in the model that is asked for; "
                    "leave the field out that changes it, or give strict=False for fresh weights there"
                )
            return None, "new", ""
        self._used.add(name)
        return value, status, ", ".join(notes)

    def replaced(self, name: str) -> bool:
        """Return whether a tensor that does not fit belongs to a part that the caller replaces: a head, registers."""
        return name.startswith(HEADS) or name == "reg_token"

    def stem(self, weight: Tensor, slot: Tensor) -> tuple[Tensor, Status, list[str]]:
        """Adapt the patch projection to other channels and other patches."""
        notes, status = [], "exact"
        old, new = tuple(weight.shape), tuple(slot.shape)
        if old != new and self.model.config.patch_norm:
            raise ValueError(
                "a stem with patch_norm keeps its channels and patch; leave in_channels and patch_size as in the file"
            )
        if old[1] != new[1]:
            weight, status = adapt_channels(weight, to=new[1], how=self.channels), "adapted"
            notes.append(f"{old[1]} -> {new[1]} channels")
        if old[2:] != new[2:] and self.model.config.stem == "patch":
            weight, status = resize_patch(weight, to=(new[2], new[3])), "adapted" if notes else "resized"
            notes.append(f"{old[2]}x{old[3]} -> {new[2]}x{new[3]}")
        return weight, status, notes  # type: ignore[return-value]

    def positions(self, slot: Tensor) -> tuple[Tensor | None, Status, str]:
        """Adapt the position embedding to the model's grid and to the prefix tokens that have a row in it."""
        grid, dim = self.model.grid, slot.shape[-1]
        front = torch.zeros(1, self.model.placed_tokens, dim)
        if self.model.config.pos_embed == "sincos2d":
            value = torch.cat([front, sincos_2d(grid, dim)[None]], dim=1)
            if self.stored.config.pos_embed != "sincos2d":
                return value, "new", "computed"
            self._used.add("pos_embed")
            return (value, "exact", "") if grid == self.stored.grid else (value, "resized", "computed")
        if "pos_embed" not in self.match.sources:
            if not self.match.layout.computes_positions:
                return None, "new", ""
            return torch.cat([front, sincos_of_files(grid, dim)], dim=1), "new", "computed, as its code does"
        table = self.match.sources["pos_embed"].read(self.tensors).reshape(1, -1, dim).float()
        self._used.add("pos_embed")
        own_rows = self.rows()
        kinds = ("cls", "dist")[: self.model.placed_tokens]
        here = resize_positions(table[:, len(self.stored.positions_for) :], old=self.stored.grid, new=grid, prefix=0)
        value = torch.cat([*(own_rows.get(kind, torch.zeros(1, 1, dim)) for kind in kinds), here], dim=1)
        if grid != self.stored.grid:
            sides = [f"{height}x{width}" for height, width in (self.stored.grid, grid)]
            return value, "resized", " -> ".join(sides)
        if tuple(own_rows) == kinds:
            return value, "exact", ""
        moved = any(getattr(self.model, name) is not None and self.moved(kind) is not None for name, kind in TOKENS.items())
        more = ", the others added to their tokens" if moved else ""
        return value, "adapted", f"{table.shape[1]} -> {value.shape[1]} rows{more}"

    def rows(self) -> dict[str, Float[Tensor, "1 n D"]]:
        """Return the file's positions of the prefix tokens, by the kind of token."""
        if "pos_embed" not in self.match.sources:
            return {}
        table = self.match.sources["pos_embed"].read(self.tensors)
        if table.ndim == 4:
            return {}
        rows, start = {}, 0
        for kind in dict.fromkeys(self.stored.positions_for):
            count = self.stored.positions_for.count(kind)
            rows[kind] = table[:, start : start + count].float()
            start += count
        return rows

    def moved(self, kind: str) -> Tensor | None:
        """Return the position of a token that has no row in the model: added to the token, it gives the same."""
        if self.model.placed_tokens and kind != "reg":
            return None
        return self.rows().get(kind)

    def dropped(self) -> Iterator[Entry]:
        """Yield the tensors of the file that are not in the model."""
        for name, source in self.match.sources.items():
            count = sum(math.prod(self.shapes[part]) for part in source.theirs)
            if name not in self._used and count:  # vit-pytorch's mean has a class token of no rows
                yield Entry(name, "dropped", count, head=name.startswith(HEADS))
        for name in (*self.match.foreign, *self.match.outside):
            yield Entry(name, "dropped", math.prod(self.shapes[name]))


TOKENS = {"cls_token": "cls", "dist_token": "dist", "reg_token": "reg"}


def owned(value: Tensor | None, slot: Tensor) -> Tensor:
    """Copy a value to new memory of the model's dtype: a model must not depend on a file that may change."""
    copy = torch.empty_like(slot, device="cpu")  # in the order of memory that the layer wants: channels last in a conv stem
    return copy if value is None else copy.copy_(value)


def sincos_of_files(grid: Pair, dim: int) -> Float[Tensor, "1 L D"]:
    """Compute the fixed positions of big_vision and SimpleViT, which their files omit (Beyer et al. 2022).

    As `models.positions.sincos_2d`, but the frequencies reach 1 / 10,000 with the last one.
    """
    omega = 1e4 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4 - 1))
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()[None]


def refuse_gaps(entries: Iterable[Entry], stored: ViTConfig, file: str) -> None:
    """Raise ValueError if one of `entries` is missing, in the backbone, that the model in the file has."""
    fresh = [entry.name for entry in entries if entry.fresh and not entry.head]
    if not fresh:
        return
    with torch.device("meta"):
        there = ViT(stored).state_dict()
    if missing := [name for name in fresh if name in there]:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        way = "give a whole one, or in Python give strict=False for fresh weights there"
        raise ValueError(f"{file} is not whole: it has nothing for {shown}; {way}")


# --------------------------------------------------------------------------------------------------------------------
# Card


def licence_of(config: Mapping[str, Any]) -> str | None:
    """Return the licence in the config.json of a run, or of timm."""
    ours, timms = config.get("vitrail"), config.get("pretrained_cfg")
    licence = (ours.get("licence") if isinstance(ours, dict) else None) or (
        timms.get("license") if isinstance(timms, dict) else None
    )
    return licence if isinstance(licence, str) else None


def attach_card(
    model: ViT,
    entries: tuple[Entry, ...],
    checkpoint: Checkpoint,
    match: Recognised,
    stored: Inferred,
    *,
    strict: bool,
) -> ViT:
    """Attach receipt, preprocessing and class names to the model."""
    given = preprocessing_for(
        img_size=pair(model.config.img_size),
        in_channels=model.config.in_channels,
        num_classes=model.config.num_classes if model.config.num_classes == stored.config.num_classes else -1,
        config=checkpoint.config,
        preprocessor=checkpoint.preprocessor,
        origin=match.layout.name,
        file_img_size=pair(stored.config.img_size),
    )
    notes = list(checkpoint.notes)
    if match.others:
        shown = ", ".join(prefix.rstrip("./") or "without a prefix" for prefix in match.others)
        notes.append(f"took {match.prefix.rstrip('./') or 'the one without a prefix'}; the file also holds {shown}")
    receipt = Receipt(
        origin=match.layout.name,
        file=checkpoint.file,
        sha256=checkpoint.sha256,
        licence=checkpoint.licence or licence_of(checkpoint.config),
        entries=entries,
        assumed=stored.assumed,
        notes=tuple(notes),
        preprocessing=given.source,
        grid=stored.grid_source,
    )
    model.card = given.card(receipt)
    if receipt.backbone_share < BACKBONE_SHARE:
        fresh = [entry.name for entry in entries if entry.status == "new" and not entry.head]
        message = (
            f"only {receipt.backbone_share:.1%} of the backbone's parameters come from {checkpoint.file}, at least "
            f"{BACKBONE_SHARE:.0%} have to; fresh are {', '.join(fresh[:3])}{' …' if len(fresh) > 3 else ''}"
        )
        if strict:
            raise ValueError(f"{message}; leave the field out that asks for them, or give strict=False")
        warnings.warn(message, stacklevel=3)
    return model

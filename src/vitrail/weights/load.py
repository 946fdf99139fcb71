"""Load weights from any source: read, recognise, infer, adapt, load, and attach the receipt."""

# D width · C channels · P patch · L patches

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import nn

from vitrail.models import create_model
from vitrail.models.backbone import Backbone
from vitrail.models.baseline import published_classes
from vitrail.models.receipt import Entry, Receipt
from vitrail.settings import Pair, ViTConfig, choices_of_a_model, nearest, tupled
from vitrail.settings.baseline import BaselineConfig
from vitrail.settings.beit import BeitConfig
from vitrail.settings.cait import CaitConfig
from vitrail.settings.cvt import CvtConfig
from vitrail.settings.families import Family, check_fields, family_of, name_of, parse_name, require_fields
from vitrail.settings.hybrid import HybridConfig
from vitrail.settings.modern import ModernConfig
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.settings.swin_v2_cr import SwinV2CrConfig
from vitrail.settings.vitdet import VitDetConfig
from vitrail.text import printable_errors
from vitrail.weights import hub
from vitrail.weights.arrange import ANSWERS, check_answers
from vitrail.weights.baseline import published_baseline
from vitrail.weights.beit import BEIT
from vitrail.weights.cait import CAIT
from vitrail.weights.cvt import CVT
from vitrail.weights.family import FamilyReader, load_family, recognise_family
from vitrail.weights.hybrid import HYBRID
from vitrail.weights.modern import MODERN
from vitrail.weights.names_file import NamesFile, is_names_file, read_names
from vitrail.weights.pretrained import terms
from vitrail.weights.prove import prove
from vitrail.weights.read import Checkpoint, read
from vitrail.weights.recognise import recognise
from vitrail.weights.run_folder import CONFIG, SETTINGS, read_run
from vitrail.weights.swin import SWIN
from vitrail.weights.swin_v2 import SWIN_V2
from vitrail.weights.swin_v2_cr import SWIN_V2_CR
from vitrail.weights.trained import load_trained
from vitrail.weights.vit import Channels, load_vit
from vitrail.weights.vitdet import VITDET

GELUS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
"""Activation by class of timm, torch and open_clip."""
POSITIONS = tuple(f"pos_embed_{one}" for one in ("interp_mode", "antialias", "align_corners", "ar_preserving"))
"""Attributes of timm's NaFlexVit by which its positions are resized."""


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
    names: str | os.PathLike[str] | NamesFile | None = None,
    **config_changes: Any,
) -> Backbone:
    """Load a model with weights from any source, for a given size, channels and classes, in evaluation mode.

    `source` is a Hub id ("timm/vit_small_patch16_224.augreg_in21k", at a `revision`), a file (.safetensors, .npz, .pth,
    .pt, .bin), a folder (a run, or one that transformers or timm wrote), a state dict, a model of another library, or a
    name: of "B/16" the weights are random, of the baselines "torchvision:resnet50" and "timm:…" their library's own. Other
    settings are those of the file. Any field of ViTConfig can be changed, and answers what no tensor determines
    (`num_heads=8`), as do those of `arrange.ANSWERS` for home-made models (`norm_first=True`). `names` is a names file for
    a checkpoint whose names no library has; a names file that states its checkpoint is a source, too. Positions are
    resized as timm does, patches as FlexiViT does.
    `channels` selects how the stem adapts to others: "repeat" scales its filters over all, "keep" leaves the first as they
    are and initialises the rest to zero.

    `model.receipt` states the status of every tensor; `model.preprocessing` and `model.classes` come with the weights.
    Raises ValueError, in one line, for a source that can't be read, a checkpoint that is not a plain ViT or does not
    determine its shape, and if less than 95 % of the backbone comes from the file (with `strict=False`, a warning).
    """
    arguments = {"num_classes": num_classes, "img_size": img_size, "in_channels": in_channels}
    changes = {name: value for name, value in arguments.items() if value is not None} | config_changes
    check_changes(changes)  # a field that does not exist is named before anything is fetched
    weights = open_weights(source, revision=revision, names=names)
    if isinstance(source, nn.Module) and weights.checkpoint is not None and is_homemade(weights):
        weights = proved(source, weights, changes)
    return weights.build(changes, channels=channels, strict=strict)


@dataclass(frozen=True, eq=False)
class OpenedWeights:
    """A source of weights that is read once, and from which models of several sizes can be built."""

    source: Any
    """As it was given to `open_weights`."""
    checkpoint: Checkpoint | None
    """Tensors, and the files beside them; None for the name of a model."""
    config: Any | None
    """Config that says everything: that of a run, or of a model of ours; None for other checkpoints."""
    answers: Mapping[str, Any] = field(default_factory=dict)
    """Answers of a names file."""

    def build(self, changes: Mapping[str, Any], *, channels: Channels = "repeat", strict: bool = True) -> Backbone:
        """The model, with fields of its config changed. See `load`."""
        changes = {**self.answers, **changes}
        if self.checkpoint is None:
            name = str(self.source)
            require_fields(name, changes)
            reader = READERS.get(family_of(name).config)
            return fresh(name, changes) if reader is None or reader.published is None else reader.published(name, changes)
        if self.config is not None:
            require_fields(name_of(self.config), (name for name in changes if name not in ANSWERS))
            reader = READERS.get(type(self.config), Reader(load_trained))
        elif self.checkpoint.names is not None:
            reader = READERS[ViTConfig]
        else:
            reader = READERS[recognise_family(self.checkpoint, changes) or ViTConfig]
        return reader.load(self.checkpoint, self.config, changes, channels=channels, strict=strict)


def is_homemade(weights: OpenedWeights) -> bool:
    """Return True for tensors whose names are no library's, or stated by the caller: their code is nobody's."""
    checkpoint = weights.checkpoint
    if checkpoint is None or weights.config is not None:
        return False
    if checkpoint.names is not None:
        return True
    if recognise_family(checkpoint, {}) is not None:
        return False
    try:
        return not recognise(checkpoint.tensors).layout.published
    except ValueError:
        return True


def proved(module: nn.Module, weights: OpenedWeights, changes: Mapping[str, Any]) -> OpenedWeights:
    """Return the weights of a live module with names and answers with which outputs are equal. Raises ValueError if none are.

    Of `changes`, those count that say what the module computes; the others change the model after that.
    """
    assert weights.checkpoint is not None
    facts = ("num_heads", "mlp", "norm_eps", "pos_embed", *ANSWERS)
    answers = {name: value for name, value in changes.items() if name in facts and name != "pixel_scale"}
    names = prove(module, weights.checkpoint, weights.checkpoint.names, answers)
    checkpoint = weights.checkpoint
    checkpoint = dataclasses.replace(checkpoint, names=names, notes=(*checkpoint.notes, names.note))
    return dataclasses.replace(weights, checkpoint=checkpoint, answers={"pixel_scale": "unknown", **names.answers})


@printable_errors()
def open_weights(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module,
    *,
    revision: str | None = None,
    names: str | os.PathLike[str] | NamesFile | None = None,
) -> OpenedWeights:
    """Read what `load` takes, without building a model. Raises ValueError, in one line, for a source that can't be read."""
    if is_names_file(source):
        names = read_names(str(source))
        if not names.source:
            raise ValueError(f'{source} names no checkpoint; add the line "file: PATH", or give the checkpoint and names=')
        source = names.source
    if named_family(source) is not None:
        if names is not None:
            raise ValueError(f'"{source}" is the name of a model, which has no checkpoint; leave names out')
        return OpenedWeights(source, None, None)
    checkpoint, config = opened(source, revision)
    if names is None:
        return OpenedWeights(source, checkpoint, config)
    names = read_names(names)
    check_changes(names.answers, where=f"{names.path}: ")
    if config is not None:
        raise ValueError(f"{checkpoint.file} is a run, which has our names already; leave names out")
    return OpenedWeights(source, dataclasses.replace(checkpoint, names=names), None, tupled(dict(names.answers)))


class Load(Protocol):
    """Function that builds a family's model with the weights of a checkpoint; `known` is its config, of a run."""

    def __call__(
        self, checkpoint: Checkpoint, known: Any, changes: Mapping[str, Any], *, channels: Channels, strict: bool
    ) -> Backbone:
        """Return the model, in evaluation mode, with its receipt."""


class Reader(NamedTuple):
    """Functions that read checkpoints of one family."""

    load: Load
    published: Callable[[str, Mapping[str, Any]], Backbone] | None = None
    """Weights that a name alone stands for; None: a name has random weights."""
    published_classes: Callable[[str], int] | None = None
    """Number of classes of the published weights, without fetching them."""


FAMILY_READERS: dict[type[Any], FamilyReader] = {  # by the family's config, whose layouts the libraries have
    SwinConfig: SWIN,
    CaitConfig: CAIT,
    CvtConfig: CVT,
    ModernConfig: MODERN,
    SwinV2Config: SWIN_V2,
    SwinV2CrConfig: SWIN_V2_CR,
    BeitConfig: BEIT,
    VitDetConfig: VITDET,
    HybridConfig: HYBRID,
}
READERS: dict[type[Any], Reader] = {  # by the family's config; a family that is not here is read by `load_trained`
    **{family: Reader(functools.partial(load_family, reader)) for family, reader in FAMILY_READERS.items()},
    BaselineConfig: Reader(load_trained, published=published_baseline, published_classes=published_classes),
    ViTConfig: Reader(load_vit),
}


# --------------------------------------------------------------------------------------------------------------------
# Sources


def check_changes(changes: Mapping[str, Any], *, where: str = "") -> None:
    """Raise ValueError for a field or an answer that does not exist, or a value that it can't have."""
    answers = {name: value for name, value in changes.items() if name in ANSWERS}
    fields = {name: value for name, value in changes.items() if name not in ANSWERS}
    try:
        check_fields(fields)
        check_choices(fields)
        for name, value in fields.items():
            if isinstance(value, str) and isinstance(getattr(ViTConfig, name, None), int | float):
                raise ValueError(f'{name} "{value}" is no number')
        check_answers(answers)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


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
    if not isinstance(source, str) or os.path.exists(source):
        return None
    try:
        return family_of(source)
    except ValueError:
        return None


def count_classes(source: str) -> int | None:
    """Return the number of classes of a name's published weights, before they are fetched; None for any other source."""
    family = named_family(source)
    count = READERS[family.config].published_classes if family is not None and family.config in READERS else None
    return None if count is None else count(source)


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
    """Download a Hub repository and return its folder. An error mentions that no path of that name exists.

    A warning tells the licence first, where it has terms of its own.
    """
    if (line := terms(repo.partition("@")[0])) is not None:
        warnings.warn(line, stacklevel=2)
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

    def first(kind: Any, *names: str) -> Any:
        values = (getattr(part, name, None) for part in parts for name in names)
        return next((value for value in values if isinstance(value, kind)), None)

    pretrained_cfg = first(dict, "pretrained_cfg") or {}
    grids = (getattr(part, "grid_size", None) for part in parts)  # timm's PatchEmbed, open_clip's towers
    patches = (getattr(part, "patch_size", None) for part in parts)
    strides = (getattr(part, "feature_ratio", None) for part in parts)  # of the CNN before timm's HybridEmbed
    grid, patch, stride = (
        next((pair_of(value) for value in values if pair_of(value)), None) for values in (grids, patches, strides)
    )
    height, width = stride or (1, 1)
    image_size = (grid[0] * patch[0] * height, grid[1] * patch[1] * width) if grid and patch else first(int, "image_size")
    cosine = [part for part in parts if hasattr(part, "logit_scale") and hasattr(part, "window_size")]  # of Swin v2
    windows = [(part.window_size, getattr(part, "pretrained_window_size", None)) for part in cosine]
    sides = [part.window_size for part in parts if hasattr(part, "attn") and isinstance(getattr(part, "window_size", 0.0), int)]
    pools = [part.num_heads for part in parts if hasattr(part, "latent") and hasattr(part, "num_heads")]  # of timm
    heads = first(int, "num_heads", "heads")
    tanh = any(getattr(part, "approximate", "none") == "tanh" for part in parts)  # torch's GELU
    arguments = {
        "img_size": image_size,
        "num_heads": heads,
        "attn_pool_num_heads": next((number for number in pools if number != heads), None),
        "global_pool": first(str, "global_pool"),
        "pool_include_prefix": first(bool, "pool_include_prefix"),
        **{name: first((str, bool), name) for name in POSITIONS},
        "norm_eps": next((part.eps for part in parts if isinstance(part, nn.LayerNorm)), None),
        "block_windows": windows or None,
        "always_partition": first(bool, "always_partition"),
        "windows_of_blocks": sides or None,
        "act_layer": "gelu_tanh"
        if tanh
        else next((GELUS[k] for k in (type(part).__name__ for part in parts) if k in GELUS), None),
    }
    return {
        "architecture": pretrained_cfg.get("architecture", ""),
        **({"pretrained_cfg": dict(pretrained_cfg)} if pretrained_cfg else {}),
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

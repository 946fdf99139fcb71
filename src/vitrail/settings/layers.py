"""Settings of a run: recipes, layers, and the checks that turn layers into `Settings`.

A layer is a mapping of sections, {"model": {"name": "B/16"}, "optim": {"lr": 1e-3}}, that holds explicit settings only. From
the lowest to the highest: fields that the data decides, the recipe, `--config`, the command line. The dataclasses of this
package define keys, types and defaults; jsonargparse checks values against them.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import json
import math
import re
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace

from vitrail.settings.augment import AugmentConfig, RandAugment
from vitrail.settings.data import DataConfig
from vitrail.settings.dino import DinoConfig
from vitrail.settings.distill import DistillConfig
from vitrail.settings.families import FAMILIES, Family, family_of, parse_name, require_fields
from vitrail.settings.guard import GuardConfig
from vitrail.settings.lejepa import LejepaConfig
from vitrail.settings.mae import MaeConfig
from vitrail.settings.masked import BeitPretrainConfig, SimmimConfig
from vitrail.settings.model import ModelSection
from vitrail.settings.optim import OptimConfig
from vitrail.settings.run import Settings
from vitrail.settings.train import TrainConfig
from vitrail.settings.values import OTHER_SPELLINGS, nearest
from vitrail.settings.views import ViewsConfig
from vitrail.settings.vit import ModelConfig

Layer = Mapping[str, Any]

SECTIONS: dict[str, type[Any]] = {
    "model": ModelSection,  # of the family that the name selects
    "data": DataConfig,
    "augment": AugmentConfig,
    "optim": OptimConfig,
    "distill": DistillConfig,
    "mae": MaeConfig,
    "simmim": SimmimConfig,
    "beit": BeitPretrainConfig,
    "dino": DinoConfig,
    "lejepa": LejepaConfig,
    "views": ViewsConfig,
    "guard": GuardConfig,
    "train": TrainConfig,
}
LENGTHS = ("epochs", "steps", "minutes")
OF_THE_DATA = ("img_size", "in_channels", "num_classes")
"""Model fields that follow from the images: a new model name keeps them, unless the name itself decides them."""
RECIPES = Path(__file__).parent.parent / "recipes"
_KIN = {"mnist": "fashion-mnist", "cifar100": "cifar10"}


# --------------------------------------------------------------------------------------------------------------------
# Recipes and files


def recipes() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """Return the layer of a recipe, merged with those it extends. Raises ValueError for an unknown recipe."""
    return _read_recipe(name, ())


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a layer from a YAML file, such as a run's config.yaml; `extends: RECIPE` puts a recipe below it.

    Raises ValueError for a file that is not YAML or not a mapping, OSError for one that cannot be opened.
    """
    return _parse_layer(Path(path).read_text(encoding="utf-8"), origin=str(path))


def default_recipe(data: str) -> str:
    """Return the recipe for a data set: the one of its name, else of its kin, else "from-scratch"."""
    known = recipes()
    return next((name for name in (data, _KIN.get(data)) if name in known and name is not None), "from-scratch")


def recipe_file(name: str) -> dict[str, Any]:
    """Return a recipe as it is written: its sections, `extends` and `smaller`. Raises ValueError for an unknown recipe."""
    known = recipes()
    if name not in known:
        if name.endswith((".yaml", ".yml")):
            raise ValueError(f'recipe "{name}" is a file, and a recipe is a name; use --config {name}')
        raise ValueError(f'recipe "{name}" is none of {", ".join(known)}{nearest(name, known)}')
    return _load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), origin=f"recipe {name}")


def _read_recipe(name: str, parents: tuple[str, ...]) -> dict[str, Any]:
    if name in parents:
        raise ValueError(f"recipes extend each other in a circle: {' -> '.join((*parents, name))}; take one `extends` out")
    written = recipe_file(name)
    written.pop("smaller", None)  # settings/smaller.py
    return _extend(written, parents=(*parents, name))


def _parse_layer(text: str, *, origin: str) -> dict[str, Any]:
    return _extend(_load(text, origin=origin), parents=())


def _extend(layer: dict[str, Any], *, parents: tuple[str, ...]) -> dict[str, Any]:
    """Merge a layer with the recipe that it extends."""
    base = layer.pop("extends", None)
    return merge(layer) if base is None else merge(_read_recipe(str(base), parents), layer)


def _load(text: str, *, origin: str) -> dict[str, Any]:
    """Parse YAML. Raises ValueError for text that is not YAML or not a mapping."""
    try:
        layer = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ValueError(f"{origin} is not YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}") from error
    layer = {} if layer is None else layer
    if not isinstance(layer, dict):
        raise ValueError(f"{origin} must hold sections such as `optim: {{lr: 1e-3}}`, not {_shown(layer)}")
    return layer


# --------------------------------------------------------------------------------------------------------------------
# Layers


def merge(*layers: Layer) -> dict[str, Any]:
    """Merge layers field by field, where later ones win; `model: B/16` is short for `model: {name: B/16}`.

    Two fields also reset others:

    - A model name drops the model fields of earlier layers (not `OF_THE_DATA`); the fields that it decides come right below
      the other fields of its layer.
    - A length (epochs, steps or minutes) drops the lengths of earlier layers, as only one of them can be set.

    Raises ValueError for an unknown key, an unknown model name, and fields that the model's family does not have.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        plain = {section: {} if fields is None else _plain(fields) for section, fields in layer.items()}
        if isinstance(plain.get("model"), str):
            plain["model"] = {"name": plain["model"]}
        check_keys(plain)
        for section, fields in plain.items():
            under = merged.get(section, {})
            for side in {"img_size", "patch_size"}.intersection(fields if section == "model" else ()):
                fields[side] = yaml.safe_load(sides(fields[side])) if isinstance(fields[side], str) else fields[side]
            if section == "model" and fields.get("name") is not None:
                fields = {**parse_name(str(fields["name"])), **fields}
                under = {key: value for key, value in under.items() if key in OF_THE_DATA}
            if section == "train" and any(fields.get(key) is not None for key in LENGTHS):
                under = {key: value for key, value in under.items() if key not in LENGTHS}
            merged[section] = _deep(under, fields)
    model = merged.get("model", {})
    if model.get("name") is not None:
        require_fields(str(model["name"]), model, section="model.")
    return merged


def build(layers: Sequence[Layer]) -> Settings:
    """Build settings from layers, the lowest first, over the defaults of the dataclasses.

    Raises ValueError, in one line, for an unknown key, a value of the wrong type and one that its section refuses.
    """
    merged = merge({"model": {"name": ModelConfig.name}}, *layers)
    family = family_of(str(merged["model"]["name"]))
    types = key_types(family)
    try:
        values = _checker(family).parse_object(merged, defaults=False).as_dict()
    except argparse.ArgumentError as error:
        raise ValueError(explain(error, types)) from error
    for section, fields in values.items():
        for name, value in fields.items():
            _check_number(f"{section}.{name}", value, types)
    rand_augment = values.get("augment", {}).get("rand_augment")
    if rand_augment is not None:
        values["augment"]["rand_augment"] = RandAugment(**rand_augment)
    sections = SECTIONS | {"model": family.section}
    return Settings(**{section: cls(**values.get(section, {})) for section, cls in sections.items()})


@functools.cache
def _checker(family: Family) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    for key, hint in key_types(family).items():
        if key.count(".") == 1:
            parser.add_argument(f"--{key}", type=hint)
    return parser


def _check_number(key: str, value: Any, types: Mapping[str, Any]) -> None:
    """Raise ValueError for values that jsonargparse accepts: null without a null default, and numbers such as nan."""
    if value is None and type(None) not in typing.get_args(types[key]):
        raise ValueError(f'{key} "null": it takes {_accepts(types[key])}; leave the line out for the default')
    for number in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f'{key} "{number}": it takes a finite number')


YAML_BREAKS = "\x85\u2028\u2029\ufeff"
"""Characters that PyYAML writes unescaped but reads as line breaks, or not at all."""


def to_yaml(settings: Settings) -> str:
    """Write every setting as YAML, which `from_yaml` reads back exactly and `--config` accepts."""
    header = "# Every setting of this run. To run it again: vitrail train --config THIS_FILE --out ANOTHER_FOLDER\n"
    plain = _plain(dataclasses.asdict(settings))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    if any(character in text for character in YAML_BREAKS):
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=False)
    return header + text


def from_yaml(text: str) -> Settings:
    """Read settings that `to_yaml` wrote. Raises ValueError as `build` does."""
    return build([_parse_layer(text, origin="the settings")])


def command(recipe: str, layer: Layer) -> str:
    """Format a recipe and a layer as command-line options."""

    def typed(value: Any) -> str:
        return shlex.quote(value if isinstance(value, str) else json.dumps(_plain(value), separators=(",", ": ")))

    options = (f"--{section}.{key} {typed(value)}" for section, fields in layer.items() for key, value in fields.items())
    return " ".join([f"--recipe {recipe}", *options])


def model_fields(*layers: Layer) -> dict[str, Any]:
    """Return the model fields that layers set, typed but not checked against each other: a checkpoint has the others.

    Raises ValueError for a value of the wrong type.
    """
    fields = {key: value for layer in layers for key, value in layer.get("model", {}).items() if key != "name"}
    for key, value in fields.items():
        if isinstance(value, str) and (key in OF_THE_DATA or key == "patch_size"):
            value = yaml.safe_load(sides(value))
            numbers = value if isinstance(value, list) and key not in ("in_channels", "num_classes") else [value]
            if not all(isinstance(number, int) for number in numbers) or len(numbers) > 2:
                raise ValueError(f'model.{key} "{fields[key]}": it takes {_accepts(key_types()["model." + key])}')
        fields[key] = tuple(value) if isinstance(value, list) else value
    return fields


def sides(text: str) -> str:
    """Convert a size such as "96x128" to YAML, "[96, 128]"; return other text unchanged."""
    return re.sub(r"^(\d+)x(\d+)$", r"[\1, \2]", text)


def _plain(value: Any) -> Any:
    """Convert mappings to dicts and sequences to lists, recursively, for YAML."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def _deep(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings recursively."""
    inner = [key for key in over if isinstance(over[key], dict) and isinstance(under.get(key), dict)]
    return {**under, **over, **{key: _deep(under[key], over[key]) for key in inner}}


# --------------------------------------------------------------------------------------------------------------------
# Keys


@functools.cache
def key_types(family: Family | None = None) -> dict[str, Any]:
    """Return every setting's dotted key and its type: {"model.depth": int, …, "augment.rand_augment.n": int}.

    Without a family, the model's fields are those of all; one that differs between families has a union of their types.
    """
    types: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        if section != "model":
            types |= {f"{section}.{name}": hint for name, hint in _hints(cls).items()}
            continue
        for one in FAMILIES.values() if family is None else (family,):
            for name, hint in _hints(one.section).items():
                known = types.get(f"model.{name}", hint)
                types[f"model.{name}"] = known if known == hint else known | hint
    return types | {f"augment.rand_augment.{name}": hint for name, hint in typing.get_type_hints(RandAugment).items()}


def _hints(cls: type) -> dict[str, Any]:
    """Return the type of every field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def check_keys(layer: Layer) -> None:
    """Raise ValueError for the first unknown key of a layer, with the nearest known one."""
    for section, fields in layer.items():
        if section not in SECTIONS:
            key = nearest_key(str(section))
            hint = nearest(str(section), list(SECTIONS)) or (f"; did you mean {key}?" if key else "")
            raise ValueError(f'"{section}" is none of the sections {", ".join(SECTIONS)}{hint}')
        if not isinstance(fields, dict):
            example = next(key for key in key_types() if key.startswith(section)).split(".")[1]
            raise ValueError(f"{section} {_shown(fields)}: a section holds fields, as in `{section}: {{{example}: …}}`")
        inner = fields.get("rand_augment")
        dotted = [f"{section}.{name}" for name in fields]
        for key in dotted + [f"{section}.rand_augment.{name}" for name in (inner if isinstance(inner, dict) else ())]:
            if key not in key_types():
                raise ValueError(unknown_key(key))


def unknown_key(key: str, *, dashes: str = "") -> str:
    """Return the message for an unknown key; `dashes` comes before every key, as on the command line."""
    hint = nearest_key(key)
    way_out = f"did you mean {dashes}{hint}?" if hint else "vitrail train --help lists them all"
    return f"{dashes}{key} is not a setting; {way_out}"


def nearest_key(key: str) -> str:
    """Return the known setting nearest to `key`, else ''. The section of `key` may be wrong or missing."""
    section, _, name = key.replace("-", "_").rpartition(".")
    beside = {known.rpartition(".")[2]: known for known in key_types() if section and known.rpartition(".")[0] == section}
    if name not in OTHER_SPELLINGS and (slip := difflib.get_close_matches(name, beside, n=1, cutoff=0.85)):
        return beside[slip[0]]
    for spelling in (name, OTHER_SPELLINGS.get(name, "")):
        exact = [known for known in key_types() if known.rpartition(".")[2] == spelling]
        if exact:
            return next((known for known in exact if known.rpartition(".")[0] == section), exact[0])
    inside = {
        known.rpartition(".")[2]: known for known in reversed(key_types()) if not section or known.rpartition(".")[0] == section
    }
    inside = inside or {known.rpartition(".")[2]: known for known in reversed(key_types())}
    spelled = [*inside, *(theirs for theirs, ours in OTHER_SPELLINGS.items() if ours in inside)]
    close = difflib.get_close_matches(name, spelled, n=1, cutoff=0.6)
    return inside[OTHER_SPELLINGS.get(close[0], close[0])] if close else ""


# --------------------------------------------------------------------------------------------------------------------
# Types, and the options of the command line


def add_settings(parser: ArgumentParser, *, sections: Sequence[str] = tuple(SECTIONS)) -> None:
    """Add an option for every setting, `--optim.lr 1e-3`, in one group per section. Its help is the field's docstring."""
    decided = {**dict.fromkeys(parse_name(ModelConfig.name), "from the name"), **dict.fromkeys(OF_THE_DATA, "from the data")}
    added: set[str] = set()
    for section in sections:
        classes = [family.section for family in FAMILIES.values()] if section == "model" else [SECTIONS[section]]
        for cls in classes:
            fields = [field for field in dataclasses.fields(cls) if f"{section}.{field.name}" not in added]
            if not fields:  # those of another library's models are a ViT's too
                continue
            title = (cls.__doc__ or "").partition(":")[2].strip().rstrip(".")
            group = parser.add_argument_group(f"{section}: {title or _of_a_family(cls)}")
            documents = _documents(cls)
            for field in sorted(fields, key=lambda field: field.name != "name"):
                key = f"{section}.{field.name}"
                default = decided.get(field.name, "") if section == "model" else ""
                text = f"{documents[field.name]} [{default or _written(field.default)}]".replace("%", "%%")
                hint = key_types()[key]
                group.add_argument(f"--{key}", type=hint, default=field.default, metavar=metavar(hint), help=text)
                added.add(key)
    for action in parser._actions:
        if action.dest.endswith(".help"):  # jsonargparse's page about RandAugment's three fields says less than the docs
            action.help = argparse.SUPPRESS


def _of_a_family(cls: type) -> str:
    """Return the title of the options that only one family has."""
    return "further fields of " + next(family.noun for family in FAMILIES.values() if family.section is cls)


def _written(default: Any) -> str:
    """Format a default as on the command line."""
    if isinstance(default, tuple):
        return ", ".join(map(_written, default))
    if isinstance(default, float):
        return f"{default:.4g}"
    return (
        {None: "null", True: "true", False: "false"}[default]
        if default is None or default is True or default is False
        else str(default)
    )


def layer_of(parsed: Namespace) -> dict[str, Any]:
    """Return the settings parsed by `parse_args(defaults=False)` as a layer."""
    return {section: fields for section, fields in parsed.as_dict().items() if section in SECTIONS}


def _documents(cls: type) -> dict[str, str]:
    """Return the docstring of every field, including those of base classes."""
    documents: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        parameters = docstring_parser.parse_from_object(base).params
        documents |= {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in parameters}
    return documents


def metavar(hint: Any) -> str:
    """Return the placeholder of an option's value in the help: a type in one word."""
    if typing.get_origin(hint) is Literal:
        words = typing.get_args(hint)
        return "{" + ",".join(map(str, words)) + "}" if len(words) > 1 else str(words[0])
    if typing.get_origin(hint) is tuple:
        kind, *others = typing.get_args(hint)
        several = {int: "[N,…]", float: "[X,…]"} if others == [...] else {int: "HxW", float: "[X,Y]"}
        return several[kind]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return "|".join(metavar(inner) for inner in typing.get_args(hint) if inner is not type(None))
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(f"{field.name}: {field.default:g}" for field in dataclasses.fields(hint)) + "}"
    return {int: "N", float: "X", bool: "{true,false}", str: "NAME"}[hint]


def explain(error: Exception, types: Mapping[str, Any] | None = None) -> str:
    """Condense jsonargparse's message to one line: the key, the value, and the values that the key accepts."""
    text, types = str(error), types or key_types()
    key = re.search(r'Parser key "([\w.]+)"', text)
    value = re.search(r"(?:Given value|Got value): (.*)", text)
    if key is None or key[1] not in types:
        return " ".join(text.split())
    hint = types[key[1]]
    shown = "" if value is None else f' "{value[1]}"'
    close = nearest(value[1], list(typing.get_args(hint))) if value and typing.get_origin(hint) is Literal else ""
    return f"{key[1]}{shown}: it takes {_accepts(hint)}{close}"


def _accepts(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(inner) if len(inner) > 1 else f'"{inner[0]}"'
    if origin is tuple and inner[1] is ...:
        return "whole numbers, as in [8, 16]" if inner[0] is int else "numbers, as in [0.5, 0.5, 0.5]"
    if origin is tuple:
        return "height x width, as in 96x128" if inner[0] is int else "two numbers, as in [0.5, 1.0]"
    if origin in (types.UnionType, typing.Union):
        return ", or ".join(_accepts(each) for each in inner)
    if dataclasses.is_dataclass(hint):
        return "fields, as in {" + ", ".join(f"{f.name}: {f.default}" for f in dataclasses.fields(hint)) + "}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}[hint]


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return f'"{text if len(text) <= 40 else text[:39] + "…"}"'

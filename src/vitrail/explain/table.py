"""The table of explanation methods: what each shows, which options it takes, and what it needs of a backbone.

Python, the command line, sheets and scores read this table. A row names its function instead of importing it, so the table
lies below all other files of this folder and needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vitrail.settings import nearest

Need = Literal["attention", "rows", "tokens", "grid", "head"]
Option = Literal["layer", "heads", "single_heads", "query", "target", "discard_ratio", "hold_norms"]

NEEDS: dict[Need, str] = {
    "attention": "global attention",  # every token attends to every token: Backbone.global_attention
    "rows": "attention over the whole image",  # that, or of a class token alone: Backbone.class_attention_layers
    "tokens": "patch tokens",  # Features.tokens, with their grid
    "grid": "a grid of features",  # Features.pyramid, or the tokens' grid
    "head": "a class head",  # config.num_classes above 0
}
"""Needs of methods, with their names in messages."""

WITHOUT_EFFECT: dict[Option, str] = {
    "layer": "{method} goes through all layers; leave the layers out, or use {others}",
    "heads": "{method} has no heads to choose; leave them out, or use {others}",
    "single_heads": '{method} makes one matrix of all heads; use "mean", "max" or "min", or {others} for single ones',
    "query": "{method} does not ask for a patch; leave {value} out, or use {others}",
    "target": '{method} knows no class, so "{value}" changes nothing; use {others}',
    "discard_ratio": "discard_ratio is for {others}, not for {method}; leave it out",
    "hold_norms": "hold_norms is for {others}, not for {method}; leave it out",
}
"""The error for an option that a method does not take; `others` are the methods that take it."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One explanation method."""

    function: str | Callable[..., Any]
    """Model, images and `options` to one map for each image: "file:name" in `vitrail.explain.methods`, or a function."""
    shows: str
    """Description of the map, in one line."""
    options: frozenset[Option]
    """Keyword arguments of the function, beside those that all methods take (pad, sizes, patch_size, img_size); and
    "single_heads" where `heads` may be one head, not only the mean, max or min of all."""
    needs: frozenset[Need]
    """Features that a backbone must have."""
    evidence: bool
    """True for a map that ranks patches by their effect on the output: insertion and deletion can score it."""
    sheet: str | None = None
    """"file:name" of a function that makes the maps of several `layers` and `heads` in one pass; None: one call for each."""
    joint: bool = False
    """True for a map that depends on the other images of the call, which belong on one sheet."""
    legend: tuple[str, str] | None = None
    """Names of the lowest and the highest colour; None: low and high, or against and for where the map is signed."""

    @property
    def run(self) -> Callable[..., Any]:
        """The function."""
        return _load(self.function)

    @property
    def run_sheet(self) -> Callable[..., Any] | None:
        """The function of `sheet`."""
        return None if self.sheet is None else _load(self.sheet)


METHODS: dict[str, Method] = {
    "attention": Method(
        function="attention:attention",
        sheet="attention:attention_sheet",
        shows="where one token of one layer looks, head by head or all heads",
        options=frozenset({"layer", "heads", "single_heads", "query"}),
        needs=frozenset({"rows"}),
        evidence=True,
    ),
    "rollout": Method(
        function="rollout:rollout",
        shows="where the head looks through all layers; no class",
        options=frozenset({"heads", "query", "discard_ratio"}),
        needs=frozenset({"attention"}),
        evidence=True,
    ),
    "relevance": Method(
        function="relevance:relevance",
        shows="what speaks for a class: attention weighted by its gradient, through all layers",
        options=frozenset({"query", "target", "hold_norms"}),
        needs=frozenset({"attention", "head"}),
        evidence=True,
    ),
    "gradcam": Method(
        function="gradcam:gradcam",
        shows="what speaks for a class in the features of one layer",
        options=frozenset({"layer", "target", "hold_norms"}),
        needs=frozenset({"grid", "head"}),
        evidence=True,
    ),
    "integrated_gradients": Method(
        function="integrated_gradients:integrated_gradients",
        shows="what speaks for a class, and against it, in the pixels of each patch",
        options=frozenset({"target"}),
        needs=frozenset({"grid", "head"}),
        evidence=True,
    ),
    "pca": Method(
        function="pca:pca",
        shows="which patches have like features, as colours; foreground and background",
        options=frozenset({"layer"}),
        needs=frozenset({"tokens"}),
        evidence=False,
        joint=True,
    ),
    "similarity": Method(
        function="similarity:similarity",
        shows="which patches are like one of them",
        options=frozenset({"layer", "query"}),
        needs=frozenset({"tokens"}),
        evidence=False,
        legend=("unlike", "alike"),
    ),
}
"""Every method by its name, in the order of `compare`."""


def require_known(name: str, *, among: Collection[str] = METHODS.keys()) -> None:
    """Raise ValueError for a name that is none of these methods."""
    if name not in among:
        raise ValueError(f'method "{name}" is none of {", ".join(among)}{nearest(name, list(among))}')


def require_options(name: str, given: Mapping[Option, object]) -> None:
    """Raise ValueError for an option, given with its value, that has no effect with a method."""
    for option, value in given.items():
        if option not in METHODS[name].options:
            others = join_or(sorted(methods_with(option)))
            raise ValueError(WITHOUT_EFFECT[option].format(method=name, value=value, others=others))


def require_offered(name: str, offers: Collection[Need], *, model: str) -> None:
    """Raise ValueError for a method that needs what a backbone, called `model`, does not offer."""
    row = METHODS[name]
    missing = [need for need in NEEDS if need in row.needs and need not in offers]
    if not missing:
        return
    if missing == ["head"]:
        free = usable({*offers} - {"head"}, evidence=True) or usable(offers)
        way_out = f"{' and '.join(free)} need{'s' * (len(free) == 1)} none" if free else "give it one with reset_head"
        raise ValueError(f"this model has no head, so there is no class to explain; {way_out}")
    others = usable(offers, evidence=row.evidence) or usable(offers)
    raise ValueError(
        f'method "{name}" needs {NEEDS[missing[0]]}, which {model} does not have; use {join_or(others) if others else "a ViT"}'
    )


def usable(offers: Collection[Need], *, evidence: bool | None = None) -> list[str]:
    """Return the methods that a backbone with these offers can run; with `evidence`, those with or without scores."""
    return [name for name, row in METHODS.items() if row.needs.issubset(offers) and evidence in (None, row.evidence)]


def methods_with(option: Option) -> list[str]:
    """Return the methods that take an option."""
    return [name for name, row in METHODS.items() if option in row.options]


def default_method(offers: Collection[Need]) -> str:
    """Return the method to use where none is named: the first for a class, else the first with scores, else the first.

    Raises ValueError where a backbone can run none.
    """
    names = usable(offers)
    if not names:
        raise ValueError("this model has neither tokens nor feature maps to explain; use a ViT or a Swin Transformer")
    return min(names, key=lambda name: ("target" not in METHODS[name].options, not METHODS[name].evidence))


def as_words(name: str) -> str:
    """Return a method's name as words."""
    return name.replace("_", " ")


def as_typed(name: str) -> str:
    """Return a method's name as the command line's help has it."""
    return name.replace("_", "-")


def overview() -> str:
    """Return a line for each method, with what it shows."""
    return "\n".join(f"  {as_typed(name):<22}{row.shows}" for name, row in METHODS.items())


def join_or(names: Collection[str]) -> str:
    """Join names with commas and "or"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _load(place: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(place, str):
        return place
    file, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f"vitrail.explain.methods.{file}"), name)
    return function

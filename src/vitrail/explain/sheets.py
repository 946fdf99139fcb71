"""Sheets: the maps of one method, or of all side by side, each over its image with its scores below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from vitrail.data.decode import Picture
from vitrail.explain import draw
from vitrail.explain.comparison import Comparison, compare
from vitrail.explain.inputs import (
    Images,
    Query,
    Scene,
    Target,
    backbone_of,
    join_notes,
    layer_count,
    model_name,
    offers_of,
    open_scene,
    require_layer,
)
from vitrail.explain.maps import Maps
from vitrail.explain.methods.attention import Fusion, Heads
from vitrail.explain.score import Compared, Scores, Trial, logits_of, random_maps, shuffled
from vitrail.explain.table import METHODS, Option, as_words, default_method, require_known, require_offered, require_options
from vitrail.settings import Pair
from vitrail.weights.run_folder import write_atomically

SIDES = ("insertion", "deletion")
SCORED = 12
"""Maps of one sheet that get scores, at most: each takes as many passes as `steps`, twice."""
DRAWS = 8
"""Random maps that scores are compared with."""


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Settings of a sheet. Raises ValueError for an unknown method, and for an option that the method does not take."""

    method: str | None = None
    """Name of the method; None: relevance where the model has attention and a head, else what `default_method` names."""
    layers: Sequence[int] | Literal["all"] | None = None
    heads: Sequence[Heads] | Literal["all"] | None = None
    query: Query = "cls"
    target: int | str | None = None
    """Target class; None is the one that the model predicts."""
    discard_ratio: float = 0.0
    """Share of the smallest weights that rollout leaves out."""
    hold_norms: bool = False
    """Take the scales of the tokens' norms for constants in the gradient (relevance, Grad-CAM)."""
    img_size: int | Pair | None = None
    steps: int = 20
    """Steps of insertion and deletion; 0 leaves the scores out."""
    grid: bool = False
    """Draw thin lines between the patches."""

    def __post_init__(self) -> None:
        if self.method is not None:
            require_known(self.method)
            require_options(self.method, self.options())

    def options(self) -> dict[Option, Any]:
        """Return the methods' options that differ from their defaults, with the values to name in an error."""
        query = "cls" if self.query == "cls" else f"{self.query[0]},{self.query[1]}"
        given: list[tuple[Option, Any, bool]] = [
            ("layer", self.layers, self.layers is not None),
            ("heads", self.heads, self.heads is not None),
            ("single_heads", self.heads, self.heads is not None and not set(self.heads) <= set(get_args(Fusion))),
            ("discard_ratio", self.discard_ratio, bool(self.discard_ratio)),
            ("hold_norms", self.hold_norms, self.hold_norms),
            ("query", query, self.query != "cls"),
            ("target", self.target, self.target is not None),
        ]
        return {option: value for option, value, differs in given if differs}

    def for_model(self, model: nn.Module) -> ExplainConfig:
        """Return the settings with a method. Raises ValueError for a method that needs what the model does not offer."""
        offers = offers_of(model)
        config = self if self.method is not None else replace(self, method=default_method(offers))
        require_offered(cast(str, config.method), offers, model=model_name(backbone_of(model)))
        return config


@dataclass(frozen=True, eq=False)
class ExplainResult:
    """A sheet, the maps in it, and their scores."""

    figure: Figure
    maps: tuple[Maps, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """A row for each map and image: method, label, note, class, and insertion and deletion, those of random maps and those of
    the same method with shuffled weights, or None."""
    verdict: str = ""
    """Conclusion from the scores, in a sentence."""

    def save_arrays(self, path: Path) -> Path:
        """Write the maps as one .npy, (maps, images, gh, gw), and return the path."""
        with write_atomically(path) as draft, draft.open("wb") as file:
            np.save(file, np.stack([maps.numpy() for maps in self.maps]))
        return path


# --------------------------------------------------------------------------------------------------------------------
# One method


def explain(model: nn.Module, images: Images, config: ExplainConfig) -> ExplainResult:
    """Draw the maps of one method, each over its image, with scores where the method has them.

    Raises ValueError for a method that needs what the model does not offer, and as the method's function does.
    """
    config = config.for_model(model)
    maps = method_maps(model, images, config, target=config.target)
    note = maps[0].note
    with open_scene(model, images, img_size=config.img_size) as scene:
        rows = [_row(one, index) for index in range(len(maps[0])) for one in maps]
        compared: list[Compared] = []
        classes: dict[int, tuple[str, float]] = {}
        if not scene.model.config.num_classes:
            note = join_notes((note, "no scores: the model has no head"))
        else:
            targets, classes = _classes(scene, config.target)
            why_not = _why_no_scores(config, len(maps))
            if why_not:
                note = join_notes((note, why_not))
            elif config.steps:
                trial = Trial.of(scene, target=targets, steps=config.steps, baseline="mean")
                shuffled_maps = method_maps(shuffled(model), images, config, target=targets)
                compared = [trial.compare(*both) for both in zip(maps, shuffled_maps, strict=True)]
                chance = [trial.scores(random_maps(maps[0], seed=seed)) for seed in range(DRAWS)]
                for place, row in enumerate(rows):
                    _add_scores(row, compared[place % len(maps)], chance, index=place // len(maps))
                note = join_notes((note, _chance_note(chance)))
    for place, row in enumerate(rows):
        row["class"], row["probability"] = classes.get(place // len(maps), (None, None))
    return ExplainResult(_sheet(maps, compared, classes, note=note, grid=config.grid), tuple(maps), rows)


def method_maps(model: nn.Module, images: Images, config: ExplainConfig, *, target: Target) -> list[Maps]:
    """Return the maps of the config's method, for a class if it takes one: layer by layer, head by head."""
    assert config.method is not None
    method = METHODS[config.method]
    layers: Sequence[int] = (-1,)
    if "layer" in method.options:
        backbone = backbone_of(model)
        rows = "rows" in method.needs
        layers = range(layer_count(backbone, rows=rows)) if config.layers == "all" else config.layers or (-1,)
        for layer in layers:
            require_layer(backbone, layer, rows=rows)
    heads = ("mean",) if config.heads is None else config.heads
    values = {
        "query": config.query,
        "target": target,
        "discard_ratio": config.discard_ratio,
        "hold_norms": config.hold_norms,
    }
    options = {"img_size": config.img_size} | {name: value for name, value in values.items() if name in method.options}
    if method.run_sheet is not None:
        return cast(list[Maps], method.run_sheet(model, images, layers=layers, heads=heads, **options))
    by_layer = [{"layer": layer} for layer in layers] if "layer" in method.options else [{}]
    by_head = [{"heads": one} for one in heads] if "heads" in method.options else [{}]
    return [method.run(model, images, **layer, **head, **options) for layer in by_layer for head in by_head]


def _classes(scene: Scene, target: Target) -> tuple[list[int], dict[int, tuple[str, float]]]:
    """Return the target class of each image, and by image its name and probability."""
    logits = logits_of(scene)
    targets = scene.targets(target, logits).tolist()
    probabilities = logits.sigmoid() if scene.model.multi_label else logits.softmax(dim=1)
    return targets, {
        index: (scene.class_name(number), probabilities[index, number].item()) for index, number in enumerate(targets)
    }


def _why_no_scores(config: ExplainConfig, count: int) -> str:
    """Return why `count` maps of a model with a head get no scores, though they were asked for; empty where they get them."""
    assert config.method is not None
    if not METHODS[config.method].evidence:
        return f"no scores: {config.method} says what tokens are like, not what speaks for a class"
    if config.steps and count > SCORED:
        return f"no scores: {count} maps, and at most {SCORED} are scored"
    return ""


def _sheet(
    maps: Sequence[Maps],
    compared: Sequence[Compared],
    classes: dict[int, tuple[str, float]],
    *,
    note: str,
    grid: bool,
) -> Figure:
    """Draw a row for each image: the image with its class, then its maps with their scores."""
    rows = []
    for index in range(len(maps[0])):
        lines = [_score_line(one, index) for one in compared] or [""] * len(maps)
        panels = [one.panel(index, line=line) for one, line in zip(maps, lines, strict=True)]
        label = f"{classes[index][0]} ({classes[index][1]:.1%})" if index in classes else ""
        rows.append(draw.SheetRow(maps[0].picture(index), Path(maps[0].names[index]).name, panels, label=label))
    return draw.sheet(rows, note=note, grid=grid)


# --------------------------------------------------------------------------------------------------------------------
# Methods side by side


def side_by_side(
    model: nn.Module,
    images: Picture | Sequence[Picture],
    config: ExplainConfig,
    *,
    methods: Sequence[str] | None = None,
) -> tuple[ExplainResult, Comparison]:
    """Draw methods on the same images and classes, with their scores, beside each other.

    `methods` and errors are as `compare` has them.
    """
    comparison = compare(
        model,
        images,
        methods=methods,
        target=config.target,
        hold_norms=config.hold_norms,
        steps=config.steps,
        img_size=config.img_size,
    )
    rows, sheet_rows = [], []
    maps = {name: one.maps for name, one in comparison.methods.items()}
    first = next(iter(maps.values()))
    for index, class_name in enumerate(comparison.classes):
        panels = []
        for name, one in comparison.methods.items():
            panels.append(one.maps.panel(index, label=as_words(name), line=_score_line(one, index)))
            rows.append(_row(one.maps, index) | {"class": class_name})
            _add_scores(rows[-1], one, comparison.random, index=index)
        sheet_rows.append(draw.SheetRow(first.picture(index), Path(first.names[index]).name, panels, label=class_name))
    note = f"{comparison.verdict} {_chance_note(comparison.random).capitalize()}."
    for text in sorted({one.note for one in maps.values() if one.note}):
        names = (as_words(name) for name, one in maps.items() if one.note == text)
        note += f" {', '.join(names).capitalize()}: {text}."
    figure = draw.sheet(sheet_rows, note=note, grid=config.grid)
    return ExplainResult(figure, tuple(maps.values()), rows, comparison.verdict), comparison


# --------------------------------------------------------------------------------------------------------------------
# Numbers and notes


def _row(maps: Maps, index: int) -> dict[str, Any]:
    """Return the row of one map without scores."""
    none = dict.fromkeys((*(f"{of}{side}" for of in ("", "random_", "shuffled_") for side in SIDES), "rank_correlation"))
    label, note = maps.labels[index], maps.note or None
    return {"image": maps.names[index], "method": maps.method, "label": label, "note": note, **none}


def _add_scores(row: dict[str, Any], one: Compared, chance: Sequence[Scores], *, index: int) -> None:
    """Write the scores of an image's map into its row."""
    for side in SIDES:
        row[side] = getattr(one.scores, side)[index].item()
        row[f"random_{side}"] = torch.stack([getattr(scores, side)[index] for scores in chance]).mean().item()
        row[f"shuffled_{side}"] = getattr(one.shuffled_scores, side)[index].item()
    correlation = one.correlation[index].item()
    row["rank_correlation"] = None if np.isnan(correlation) else correlation


def _score_line(one: Compared, index: int) -> str:
    """Return the scores below a map, as text."""
    scores, blind, correlation = one.scores, one.shuffled_scores, one.correlation[index].item()
    like = "" if np.isnan(correlation) else f",\nrank correlation {correlation:.2f}"
    return (
        f"insertion {scores.insertion[index]:.2f} · deletion {scores.deletion[index]:.2f}\n"
        f"shuffled weights: {blind.insertion[index]:.2f} · {blind.deletion[index]:.2f}{like}"
    )


def _chance_note(chance: Sequence[Scores]) -> str:
    """Return the mean scores of random maps, as text."""
    insertion, deletion = (torch.stack([getattr(one, side) for one in chance]).mean() for side in SIDES)
    return (
        f"insertion (more is better) and deletion (less is better) of a random map: {insertion:.2f} and {deletion:.2f}, "
        f"mean of {len(chance)}"
    )


def unique_names(paths: Sequence[str | Path]) -> Iterator[str]:
    """Yield a name for each path's sheet: its stem, with a number where an earlier path has it."""
    taken: set[str] = set()
    for path in paths:
        stem = name = Path(path).stem
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        yield name

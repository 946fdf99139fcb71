"""One image to one sheet: the maps that were asked for, a number beside each, and what to make of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from vitrail.config import Pair, nearest
from vitrail.data.decode import Picture
from vitrail.explain import draw
from vitrail.explain.attention import Heads, attention_sheet, rollout
from vitrail.explain.gradients import gradcam, integrated_gradients, relevance
from vitrail.explain.inputs import Query, Target, require_layer, scene, unwrapped
from vitrail.explain.maps import Maps
from vitrail.explain.score import METHODS as EVIDENCE
from vitrail.explain.score import (
    OF_A_CLASS,
    OF_A_GRADIENT,
    Compared,
    Comparison,
    Scores,
    Trial,
    compare,
    logits_of,
    random_maps,
    shuffled,
    spoken,
)
from vitrail.explain.tokens import pca, similarity
from vitrail.weights.run_folder import write_atomically

METHODS = ("relevance", "attention", "rollout", "gradcam", "integrated_gradients", "pca", "similarity")
WITH_LAYERS = frozenset({"attention", "gradcam", "pca", "similarity"})
WITH_TOKENS = frozenset({"relevance", "attention", "rollout", "similarity"})
SIDES = ("insertion", "deletion")
SCORED = 12
"""Maps of one sheet that get scores: each takes as many passes as `steps` says, twice."""
DRAWS = 8
"""Random maps that scores stand beside."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is to be seen. Raises ValueError for what a method has not."""

    method: str | None = None
    """None: relevance where the model has a head, else attention."""
    layers: Sequence[int] | Literal["all"] | None = None
    heads: Sequence[Heads] | Literal["all"] | None = None
    query: Query = "cls"
    target: int | str | None = None
    """The class that is meant; None is the one that the model predicts."""
    discard_ratio: float = 0.0
    hold_norms: bool = False
    """Of the gradient of relevance and Grad-CAM, the scales of the tokens' norms for constants."""
    img_size: int | Pair | None = None
    steps: int = 20
    """Of insertion and deletion; 0 leaves the scores out."""
    grid: bool = False

    def __post_init__(self) -> None:
        name = self.method
        if name is None:
            return
        if name not in METHODS:
            raise ValueError(f'method "{name}" is none of {", ".join(METHODS)}{nearest(name, list(METHODS))}')
        if self.layers is not None and name not in WITH_LAYERS:
            raise ValueError(f"{name} goes through all layers; leave the layers out, or use {_either(WITH_LAYERS)}")
        if self.heads is not None and name not in ("attention", "rollout"):
            raise ValueError(f"{name} has no heads to choose; leave them out, or use attention or rollout")
        if self.discard_ratio and name != "rollout":
            raise ValueError(f"discard_ratio is for rollout, not for {name}; leave it out")
        if self.hold_norms and name not in OF_A_GRADIENT:
            raise ValueError(f"hold_norms is for {_either(OF_A_GRADIENT)}, not for {name}; leave it out")
        if self.query != "cls" and name not in WITH_TOKENS:
            raise ValueError(
                f"{name} does not ask for a patch; leave {self.query[0]},{self.query[1]} out, or use {_either(WITH_TOKENS)}"
            )
        if self.target is not None and name not in OF_A_CLASS:
            raise ValueError(f'{name} knows no class, so "{self.target}" changes nothing; use {_either(OF_A_CLASS)}')

    def of(self, model: nn.Module) -> str:
        """The method."""
        return self.method or ("relevance" if unwrapped(model).config.num_classes else "attention")


def _either(names: frozenset[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} or {last}"


@dataclass(frozen=True, eq=False)
class Explained:
    """A sheet, the maps in it, and their numbers."""

    figure: Figure
    maps: tuple[Maps, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """A row for each map and image: method, label, note, class, and insertion and deletion, those of random maps and those of
    the same method with shuffled weights, or None."""
    verdict: str = ""
    """A sentence from the numbers."""

    def save_arrays(self, path: Path) -> Path:
        """Writes the maps as one .npy, (maps, images, gh, gw). Returns the path."""
        with write_atomically(path) as draft, draft.open("wb") as file:
            np.save(file, np.stack([maps.numpy() for maps in self.maps]))
        return path


def explain(model: nn.Module, images: Picture | Sequence[Picture], ask: Ask) -> Explained:
    """The maps of one method, each over what the model saw. Raises ValueError for what can't be."""
    name = ask.of(model)
    ask = replace(ask, method=name)
    found = made(model, images, ask, target=ask.target)
    note = found[0].note
    with scene(model, images, img_size=ask.img_size) as seen:
        rows = [_row(maps, index) for index in range(len(found[0])) for maps in found]
        scores: list[Compared] = []
        said = {}
        if not seen.model.config.num_classes:
            note = _and(note, "no scores: the model has no head")
        else:
            logits = logits_of(seen)
            numbers = seen.targets(ask.target, logits)
            shares = logits.sigmoid() if seen.model.multi_label else logits.softmax(dim=1)
            said = {index: (seen.called(number), shares[index, number].item()) for index, number in enumerate(numbers.tolist())}
            if name not in EVIDENCE:
                note = _and(note, f"no scores: {name} says what tokens are like, not what speaks for a class")
            elif ask.steps and len(found) > SCORED:
                note = _and(note, f"no scores: {len(found)} maps, and at most {SCORED} are scored")
            elif ask.steps:
                trial = Trial.of(seen, target=numbers.tolist(), steps=ask.steps, baseline="mean")
                blind = made(shuffled(model), images, ask, target=numbers.tolist())
                scores = [trial.beside(*both) for both in zip(found, blind, strict=True)]
                chance = [trial.scores(random_maps(found[0], seed=seed)) for seed in range(DRAWS)]
                for place, row in enumerate(rows):
                    _add(row, scores[place % len(scores)], chance, index=place // len(scores))
                note = _and(note, _of_chance(chance))
        for row, index in zip(rows, (index for index in range(len(found[0])) for _ in found), strict=True):
            row["class"], row["probability"] = said.get(index, (None, None))
        sheets = [
            draw.Row(
                found[0].seen(index),
                _short(found[0].names[index]),
                [maps.panel(index, line=_line(scores[place], index) if scores else "") for place, maps in enumerate(found)],
                label=f"{said[index][0]} ({said[index][1]:.1%})" if index in said else "",
            )
            for index in range(len(found[0]))
        ]
    return Explained(draw.sheet(sheets, note=note, grid=ask.grid), tuple(found), rows)


def made(model: nn.Module, images: Picture | Sequence[Picture], ask: Ask, *, target: Target) -> list[Maps]:
    """The maps that are asked for, of a class if the method takes one: layer by layer, head by head."""
    name, size = ask.method, ask.img_size
    layers = range(unwrapped(model).config.depth) if ask.layers == "all" else ask.layers or (-1,)
    for layer in layers:
        require_layer(unwrapped(model), layer)
    if name == "attention":
        heads = ("mean",) if ask.heads is None else ask.heads
        return attention_sheet(model, images, layers=layers, heads=heads, query=ask.query, img_size=size)
    if name == "rollout":
        fusions = ("mean",) if ask.heads is None else ask.heads
        if not set(fusions) <= {"mean", "max", "min"}:
            raise ValueError('rollout makes one matrix of all heads; use "mean", "max" or "min", or attention for single ones')
        return [
            rollout(model, images, heads=heads, discard_ratio=ask.discard_ratio, query=ask.query, img_size=size)  # type: ignore[arg-type]
            for heads in fusions
        ]
    if name == "relevance":
        return [relevance(model, images, target=target, query=ask.query, hold_norms=ask.hold_norms, img_size=size)]
    if name == "gradcam":
        held = ask.hold_norms
        return [gradcam(model, images, layer=layer, target=target, hold_norms=held, img_size=size) for layer in layers]
    if name == "integrated_gradients":
        return [integrated_gradients(model, images, target=target, img_size=size)]
    if name == "pca":
        return [pca(model, images, layer=layer, img_size=size) for layer in layers]
    return [similarity(model, images, query=ask.query, layer=layer, img_size=size) for layer in layers]


def side_by_side(
    model: nn.Module, images: Picture | Sequence[Picture], ask: Ask, *, methods: Sequence[str] = tuple(EVIDENCE)
) -> tuple[Explained, Comparison]:
    """All methods on the same images and class, with their scores, and what shuffled weights make of each."""
    found = compare(
        model,
        images,
        methods=methods,
        target=ask.target,
        hold_norms=ask.hold_norms,
        steps=ask.steps,
        img_size=ask.img_size,
    )
    rows, sheets = [], []
    first = next(iter(found.methods.values())).maps
    for index, called in enumerate(found.classes):
        panels = []
        for name, one in found.methods.items():
            panels.append(one.maps.panel(index, label=spoken(name), line=_line(one, index)))
            rows.append(_row(one.maps, index) | {"class": called})
            _add(rows[-1], one, list(found.random), index=index)
        sheets.append(draw.Row(first.seen(index), _short(first.names[index]), panels, label=called))
    note = f"{found.verdict} {_of_chance(list(found.random)).capitalize()}."
    notes = {one.maps.note for one in found.methods.values() if one.maps.note}
    for said in sorted(notes):
        of = (spoken(name) for name, one in found.methods.items() if one.maps.note == said)
        note += f" {', '.join(of).capitalize()}: {said}."
    figure = draw.sheet(sheets, note=note, grid=ask.grid)
    return Explained(figure, tuple(one.maps for one in found.methods.values()), rows, found.verdict), found


def _row(maps: Maps, index: int) -> dict[str, Any]:
    none = dict.fromkeys((*(f"{of}{side}" for of in ("", "random_", "shuffled_") for side in SIDES), "rank_correlation"))
    label, note = maps.labels[index], maps.note or None
    return {"image": maps.names[index], "method": maps.method, "label": label, "note": note, **none}


def _add(row: dict[str, Any], one: Compared, chance: list[Scores], *, index: int) -> None:
    """Puts the scores of an image's map into its row."""
    for side in SIDES:
        row[side] = getattr(one.scores, side)[index].item()
        row[f"random_{side}"] = torch.stack([getattr(draw, side)[index] for draw in chance]).mean().item()
        row[f"shuffled_{side}"] = getattr(one.shuffled_scores, side)[index].item()
    correlation = one.correlation[index].item()
    row["rank_correlation"] = None if np.isnan(correlation) else correlation


def _line(one: Compared, index: int) -> str:
    """What stands below a map."""
    scores, blind, correlation = one.scores, one.shuffled_scores, one.correlation[index].item()
    like = "" if np.isnan(correlation) else f",\nrank correlation {correlation:.2f}"
    return (
        f"insertion {scores.insertion[index]:.2f} · deletion {scores.deletion[index]:.2f}\n"
        f"shuffled weights: {blind.insertion[index]:.2f} · {blind.deletion[index]:.2f}{like}"
    )


def _of_chance(chance: list[Scores]) -> str:
    insertion, deletion = (torch.stack([getattr(one, side) for one in chance]).mean() for side in ("insertion", "deletion"))
    return (
        f"insertion (more is better) and deletion (less is better) of a random map: {insertion:.2f} and {deletion:.2f}, "
        f"mean of {len(chance)}"
    )


def _and(note: str, more: str) -> str:
    return f"{note}; {more}" if note else more


def _short(name: str) -> str:
    return Path(name).name


def unique_names(paths: Sequence[str | Path]) -> Iterator[str]:
    """A name for each path's sheet: its stem, with a number where that was taken."""
    taken: set[str] = set()
    for path in paths:
        stem = name = Path(path).stem
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        yield name

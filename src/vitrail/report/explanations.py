"""Maps over the images of a report and their faithfulness, within a time limit."""

# B images of a call · C channels · H W image

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vitrail.evaluate.intervals import mean_interval
from vitrail.explain.inputs import offers_of, open_scene
from vitrail.explain.maps import Maps
from vitrail.explain.score import Trial, random_maps
from vitrail.explain.table import METHODS, as_words, default_method
from vitrail.models.backbone import Backbone

LIMIT_S = 20.0
"""Seconds that maps and their scores take, at most, but for the first map."""
STEPS = 10
"""Steps of insertion and deletion."""
DRAWS = 2
"""Random orders of the patches that each map is compared with."""


@dataclass(frozen=True)
class Faithfulness:
    """Insertion (more is better) and deletion (less is better) of a map, and their means over random orders."""

    insertion: float
    deletion: float
    random_insertion: float
    random_deletion: float

    @property
    def gap(self) -> float:
        """Insertion minus deletion."""
        return self.insertion - self.deletion

    @property
    def random_gap(self) -> float:
        """The same of random orders."""
        return self.random_insertion - self.random_deletion


@dataclass(frozen=True, eq=False)
class Explained:
    """A map over its image."""

    overlay: Image.Image
    target: int
    """Class that the map speaks of."""
    scores: Faithfulness | None
    """None where the time did not suffice, and for a map that ranks no patches by their effect."""


@dataclass(frozen=True, eq=False)
class Explanations:
    """Maps of some images."""

    method: str
    """Name of the method in words; "" where there are no maps."""
    each: tuple[Explained | None, ...]
    """In the order of the images; None where the time did not suffice."""
    note: str = ""
    """Why there are none, or caveats for reading them."""

    @property
    def verdict(self) -> str:
        """Return whether the maps beat random orders, by the paired interval, in a sentence; "" for fewer than two scores."""
        scores = [one.scores for one in self.each if one is not None and one.scores is not None]
        if len(scores) < 2:
            return ""
        gap, chance = fmean(one.gap for one in scores), fmean(one.random_gap for one in scores)
        low, high = mean_interval([one.gap - one.random_gap for one in scores])
        numbers = (
            f"the gap between insertion and deletion is {gap:.2f}, and {chance:.2f} in random orders of the patches "
            f"(difference {gap - chance:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}, {len(scores)} images)"
        )
        if low > 0:
            return f"The maps point at what the predictions depend on: {numbers}."
        return f"It is not shown that the maps say more than chance, so do not read them as reasons: {numbers}."


NO_MAPS = Explanations("", ())
"""Of no images."""


def explain_images(
    model: Backbone, images: Float[Tensor, "B C H W"], targets: Sequence[int], *, limit_s: float = LIMIT_S
) -> Explanations:
    """Map what speaks for a class in each image by the model's default method, and score the maps.

    Maps come first, in half of the time; then the scores of as many as the time allows.
    """
    try:
        method = default_method(offers_of(model)) if model.config.num_classes else ""
    except ValueError as error:
        return Explanations("", (None,) * len(images), str(error))
    if not method:
        return Explanations("", (None,) * len(images), "this model has no head, so there is no class to explain")
    start, maps = time.perf_counter(), list[Maps | None]()
    for image, target in zip(images, targets, strict=True):
        late = time.perf_counter() - start > limit_s / 2
        maps.append(None if late and maps else run_method(model, method, image[None], target))
    each = list[Explained | None]()
    for image, target, made in zip(images, targets, maps, strict=True):
        scores = None
        if made is not None and METHODS[method].evidence and time.perf_counter() - start < limit_s:
            scores = score_map(model, image[None], target, made)
        each.append(None if made is None else Explained(made.overlay(), target, scores))
    notes = {made.note for made in maps if made is not None and made.note}
    left = sum(one is None for one in maps)
    late_note = f"{left} images have no map: {limit_s:g} seconds were over" if left else ""
    return Explanations(as_words(method), tuple(each), "; ".join(filter(None, (*sorted(notes), late_note))))


def run_method(model: Backbone, method: str, image: Float[Tensor, "B C H W"], target: int) -> Maps:
    """Return the map of one image."""
    options: dict[str, Any] = {"target": target} if "target" in METHODS[method].options else {}
    maps: Maps = METHODS[method].run(model, image, **options)
    return maps


def score_map(model: Backbone, image: Float[Tensor, "B C H W"], target: int, maps: Maps) -> Faithfulness:
    """Score the map of one image, and random orders of its patches."""
    with open_scene(model, image) as scene:
        trial = Trial.of(scene, target=target, steps=STEPS, baseline="mean")
        found, chance = trial.scores(maps), [trial.scores(random_maps(maps, seed=seed)) for seed in range(DRAWS)]
    return Faithfulness(
        insertion=found.insertion.item(),
        deletion=found.deletion.item(),
        random_insertion=torch.stack([one.insertion for one in chance]).mean().item(),
        random_deletion=torch.stack([one.deletion for one in chance]).mean().item(),
    )

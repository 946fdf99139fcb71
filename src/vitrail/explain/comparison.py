"""Methods side by side on the same images and classes, with their scores, curves and a verdict."""

# B batch

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.explain import plots
from vitrail.explain.curves import curves
from vitrail.explain.inputs import Images, Target, model_name, offers_of, open_scene
from vitrail.explain.score import Baseline, Compared, Scores, Trial, random_maps, shuffled
from vitrail.explain.table import METHODS, NEEDS, Need, as_words, require_known, require_offered, usable
from vitrail.settings import Pair

HARDLY_CHANGES = 0.7
"""A rank correlation from which shuffled weights explain about half of a map's ranks (0.7² ≈ 0.5) and more."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side on the same images and classes."""

    methods: dict[str, Compared]
    random: tuple[Scores, ...]
    """Scores of random maps, draw by draw."""
    classes: tuple[str, ...]
    """Name of each image's target class."""

    @property
    def random_gap(self) -> float:
        """Mean gap of random maps over draws and images."""
        return self._random_gaps().mean().item()

    @property
    def random_range(self) -> tuple[float, float]:
        """The smallest and the largest mean gap of a draw of random maps."""
        gaps = self._random_gaps()
        return gaps.min().item(), gaps.max().item()

    @property
    def best(self) -> str:
        """The method with the largest mean gap."""
        return max(self.methods, key=self.gap)

    def gap(self, method: str) -> float:
        """Return a method's mean gap over the images."""
        return self.methods[method].scores.gap.mean().item()

    def save(self, path: str | Path, *, index: int | None = None) -> Path:
        """Write the curves of one image, or their means over all, as PNG or SVG, and return the path."""
        return plots.save(curves(self.methods, self.random, self.classes, index=index), path)

    def beats_random(self, method: str) -> bool:
        """Return whether a method's mean gap is above that of every draw of random maps: by chance, 1 in draws + 1."""
        return self.gap(method) > self.random_range[1]

    def correlation(self, method: str) -> float | None:
        """Return a method's mean rank correlation over the images that have one."""
        value = self.methods[method].correlation.nanmean().item()
        return None if math.isnan(value) else value

    def table(self) -> list[dict[str, str | float | bool | None]]:
        """Return a row for each method and one for random maps: means over the images; None for what does not apply."""
        rows: list[dict[str, str | float | bool | None]] = [
            {
                "method": name,
                "insertion": one.scores.insertion.mean().item(),
                "deletion": one.scores.deletion.mean().item(),
                "gap": self.gap(name),
                "beats_random": self.beats_random(name),
                "shuffled_gap": one.shuffled_scores.gap.mean().item(),
                "rank_correlation": self.correlation(name),
            }
            for name, one in self.methods.items()
        ]
        insertion, deletion = (
            torch.stack([getattr(draw, side) for draw in self.random]).mean().item() for side in ("insertion", "deletion")
        )
        last = {"method": "random", "insertion": insertion, "deletion": deletion, "gap": self.random_gap}
        return [*rows, last | {"beats_random": None, "shuffled_gap": None, "rank_correlation": None}]

    @property
    def verdict(self) -> str:
        """The best method against random maps, and the methods that shuffled weights hardly change, in a sentence."""
        best, count = self.methods[self.best].scores, len(self.classes)
        insertion, deletion = best.insertion.mean().item(), best.deletion.mean().item()
        numbers = f"a gap of {self.gap(self.best):.3f} between insertion ({insertion:.3f}) and deletion ({deletion:.3f})"
        low, high = self.random_range
        chance = f"where random orders have {self.random_gap:.3f} ({low:.3f} to {high:.3f} in {len(self.random)} draws)"
        over = f"on {count} image{'s' if count != 1 else ''}"
        if self.beats_random(self.best):
            sentence = f"The numbers favour {as_words(self.best)} {over}: {numbers}, {chance}"
        else:
            sentence = f"No method beats every random order {over}: the best, {as_words(self.best)}, has {numbers}, {chance}"
        correlations = {name: self.correlation(name) or 0.0 for name in self.methods}
        unchanged = [f"{as_words(name)} ({value:.2f})" for name, value in correlations.items() if value >= HARDLY_CHANGES]
        if unchanged:
            names = " and ".join(unchanged)
            sentence += (
                f"; hardly changed by shuffled weights (rank correlation), so saying little of what was learned: {names}"
            )
        return sentence + "."

    def _random_gaps(self) -> Float[Tensor, " draws"]:
        return torch.stack([draw.gap.mean() for draw in self.random])


def compare(
    model: nn.Module,
    images: Images,
    *,
    methods: str | Sequence[str] | None = None,
    target: Target = None,
    hold_norms: bool = False,
    steps: int = 20,
    baseline: Baseline = "mean",
    draws: int = 9,
    seed: int = 0,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Comparison:
    """Compare methods: insertion and deletion of each, of the same with shuffled weights, and of random maps.

    `methods` are all with scores that the model can run, unless given. The class of an image is the same for all: the one that
    the model predicts, unless given. `steps` and `baseline` are as `faithfulness` takes them, `hold_norms` as `relevance` and
    `gradcam` do. One method beats all `draws` of random maps by chance with probability 1 / (draws + 1), the best of several
    more often; more images or draws say more. Raises ValueError for a method that is unknown, has no scores, or needs what the
    model does not offer.
    """
    names = _chosen(model, methods)
    if draws < 1:
        raise ValueError(f"draws {draws} must be at least 1: without random maps, no score says anything")
    view: dict[str, Any] = {"pad": pad, "sizes": sizes, "patch_size": patch_size, "img_size": img_size}
    shuffled_model = shuffled(model, seed=seed)
    with open_scene(model, images, **view) as scene:
        trial = Trial.of(scene, target=target, steps=steps, baseline=baseline)
        targets: list[int] = trial.targets.tolist()
        compared = {}
        for name in names:
            values = {"target": targets, "hold_norms": hold_norms}
            options = view | {option: value for option, value in values.items() if option in METHODS[name].options}
            maps, shuffled_maps = (METHODS[name].run(one, images, **options) for one in (scene.model, shuffled_model))
            compared[name] = trial.compare(maps, shuffled_maps, seed=seed)
        chance = (random_maps(maps, seed=seed + draw) for draw in range(draws))
        return Comparison(
            methods=compared,
            random=tuple(trial.scores(one, seed=seed) for one in chance),
            classes=tuple(scene.class_name(number) for number in targets),
        )


def _chosen(model: nn.Module, methods: str | Sequence[str] | None) -> list[str]:
    """Return the names of the methods to compare."""
    offers: set[Need] = {*offers_of(model), "head"}  # without a head, `Trial` says what to do
    if methods is None:
        methods = usable(offers, evidence=True) or usable(NEEDS, evidence=True)
    names = [methods] if isinstance(methods, str) else list(methods)
    if not names:
        raise ValueError(f"there are no methods to compare; give one or more of {', '.join(usable(NEEDS, evidence=True))}")
    for name in names:
        require_known(name, among=usable(NEEDS, evidence=True))
        require_offered(name, offers, model=model_name(model))
    return names

"""Whether a map tells the truth: the class's probability as patches go and come in its order, and what shuffled weights say."""

# B batch · C channels · H W image · gh gw grid · K classes · S steps of a curve · b changed images that run together

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.config import Pair, nearest
from vitrail.explain.attention import attention, rollout
from vitrail.explain.gradients import gradcam, integrated_gradients, relevance
from vitrail.explain.inputs import Images, Scene, Target, scene, unwrapped
from vitrail.explain.maps import Maps
from vitrail.explain.tokens import present
from vitrail.models import ViT

METHODS: dict[str, Callable[..., Maps]] = {
    "attention": attention,
    "rollout": rollout,
    "relevance": relevance,
    "gradcam": gradcam,
    "integrated_gradients": integrated_gradients,
}
"""Those whose maps are meant as evidence; of `pca` and `similarity` nothing follows for a class."""
OF_A_CLASS = frozenset({"relevance", "gradcam", "integrated_gradients"})
"""Those that take a class."""
OF_A_GRADIENT = frozenset({"relevance", "gradcam"})
"""Those that take `hold_norms`."""

Baseline = Literal["mean", "blur"]

BATCH_TOKENS = 8192
"""Of images that run together: 41 of 224 px at /16, 2 of 1024 px."""
BLUR_PATCHES = 1.0
"""Standard deviation of the blur, in patches: what is smaller than a patch is gone, and no edge is left."""
HARDLY_CHANGES = 0.7
"""A rank correlation from which shuffled weights explain about half of a map's ranks (0.7² ≈ 0.5) and more."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The class's probability as patches come and go in the order of a map."""

    fractions: Float[Tensor, "B S"]
    """Share of the image's patches that have been changed, from 0 to 1."""
    insertion_curves: Float[Tensor, "B S"]
    """Probability as patches return to a blurred image."""
    deletion_curves: Float[Tensor, "B S"]
    """Probability as patches are taken from the image."""

    @property
    def insertion(self) -> Float[Tensor, " B"]:
        """Area under the insertion curve, 0 to 1; large for a good map."""
        return torch.trapezoid(self.insertion_curves, self.fractions)

    @property
    def deletion(self) -> Float[Tensor, " B"]:
        """Area under the deletion curve, 0 to 1; small for a good map."""
        return torch.trapezoid(self.deletion_curves, self.fractions)

    @property
    def gap(self) -> Float[Tensor, " B"]:
        """Insertion minus deletion, -1 to 1; how much an order that says nothing has, random maps tell."""
        return self.insertion - self.deletion


@torch.no_grad()
def faithfulness(
    model: nn.Module,
    images: Images,
    maps: Maps,
    *,
    target: Target = None,
    steps: int = 20,
    baseline: Baseline = "mean",
    seed: int = 0,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Scores:
    """Insertion and deletion (Petsiuk et al. 2018, RISE) by whole patches, those with the largest numbers first.

    Deletion puts the `baseline` in the place of a patch: the data's mean colour, or the blurred image. Insertion puts patches
    into the blurred image. Both go from no patch to all in `steps`, or patch by patch where there are fewer; the probability
    is the sigmoid where the model is `multi_label`, else the softmax. Equal numbers come in a random order, drawn from `seed`,
    so a constant map is a random order. Raises ValueError for maps of other images or another grid.
    """
    with scene(model, images, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as seen:
        return Trial.of(seen, target=target, steps=steps, baseline=baseline).scores(maps, seed=seed)


@dataclass(frozen=True, eq=False)
class Trial:
    """Images, the class that is meant for each, and what takes the place of their patches: the same for every map."""

    scene: Scene
    targets: Int64[Tensor, " B"]
    counts: Int64[Tensor, "B S"]
    """How many patches have been changed, step by step."""
    removed: Float[Tensor, "B C H W"]
    """What deletion leaves in the end."""
    blurred: Float[Tensor, "B C H W"]
    """What insertion begins with."""

    @classmethod
    def of(cls, seen: Scene, *, target: Target, steps: int, baseline: str) -> Trial:
        """The class is the one that the model predicts, unless given."""
        if steps < 1:
            raise ValueError(f"steps {steps} must be at least 1")
        if baseline not in ("mean", "blur"):
            raise ValueError(f'baseline "{baseline}" is neither "mean" nor "blur"')
        if not seen.model.config.num_classes:
            raise ValueError("this model has no head, so there is no probability to follow; give it one with reset_head")
        totals = present(seen.own, seen.patch, seen.grid).sum(dim=(1, 2))  # (B,)
        shares = torch.linspace(0, 1, min(steps, int(totals.max())) + 1, dtype=torch.float64)
        blur = blurred(seen.images, seen.own, seen.patch)
        return cls(
            scene=seen,
            targets=seen.targets(target, logits_of(seen)),
            counts=(shares * totals[:, None]).round().long(),
            removed=torch.zeros_like(blur) if baseline == "mean" else blur,
            blurred=blur,
        )

    def scores(self, maps: Maps, *, seed: int = 0) -> Scores:
        """Of one map for each image. Raises ValueError for maps that are not of these images."""
        expected = (len(self.targets), *self.scene.grid)
        if tuple(maps.maps.shape) != expected:
            raise ValueError(
                f"maps of shape {tuple(maps.maps.shape)} do not fit images with patches of shape {expected}; "
                "give the images, pad, sizes, patch_size and img_size that the maps were made with"
            )
        if not maps.maps.isfinite().all():
            raise ValueError(
                f"maps of {maps.method} hold numbers that are not finite, which have no order; see the model's logits"
            )
        here = present(self.scene.own, self.scene.patch, self.scene.grid)
        ranks = ranks_of(maps.maps, here, seed=seed)
        images = self.scene.images
        return Scores(
            fractions=self.counts / self.counts[:, -1:],
            insertion_curves=self.curves(ranks, before=self.blurred, after=images),
            deletion_curves=self.curves(ranks, before=images, after=self.removed),
        )

    def beside(self, maps: Maps, shuffled: Maps, *, seed: int = 0) -> Compared:
        """Maps, and those that the same method makes of shuffled weights, both scored on the model itself."""
        scores, blind = (self.scores(one, seed=seed) for one in (maps, shuffled))
        return Compared(maps, scores, shuffled, blind, rank_correlation(maps, shuffled))

    @torch.no_grad()
    def curves(
        self, ranks: Int64[Tensor, "B gh gw"], *, before: Float[Tensor, "B C H W"], after: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B S"]:
        """The class's probability as patches pass from one image to the other, those of the lowest rank first."""
        seen, steps = self.scene, self.counts.shape[1]
        which = torch.arange(len(ranks)).repeat_interleave(steps)  # image by image, step by step
        found = []
        for part in batches(seen, len(which)):
            rows = which[part]
            changed = ranks[rows] < self.counts.flatten()[part, None, None]  # (b, gh, gw)
            pixels = changed.repeat_interleave(seen.patch[0], 1).repeat_interleave(seen.patch[1], 2)[:, None]
            rows = rows.to(before.device)
            logits = logits_in_place(seen, torch.where(pixels.to(before.device), after[rows], before[rows]), rows)
            found.append(probability(logits, self.targets[rows], multi_label=seen.model.multi_label).cpu())
        return torch.cat(found).unflatten(0, (-1, steps))


def batches(seen: Scene, count: int) -> list[slice]:
    """Of `count` images, those that run together: as many as the memory of their tokens lets."""
    step = max(1, BATCH_TOKENS // (seen.model.prefix_tokens + seen.grid[0] * seen.grid[1]))
    return [slice(start, start + step) for start in range(0, count, step)]


def logits_of(seen: Scene) -> Float[Tensor, "B K"]:
    """Logits of the images, in float32."""
    rows = torch.arange(len(seen.images), device=seen.images.device)
    return torch.cat([logits_in_place(seen, seen.images[part], rows[part]) for part in batches(seen, len(rows))])


@torch.no_grad()
def logits_in_place(seen: Scene, images: Float[Tensor, "b C H W"], rows: Int64[Tensor, " b"]) -> Float[Tensor, "b K"]:
    """Logits of changed images, each as large on its canvas as the one whose number is in `rows`."""
    sizes = None if seen.sizes is None else seen.sizes[rows]
    return seen.model.forward(images, sizes=sizes, patch_size=seen.patch).float()


def probability(logits: Float[Tensor, "b K"], targets: Int64[Tensor, " b"], *, multi_label: bool) -> Float[Tensor, " b"]:
    """The probability of one class of each image."""
    shares = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    return shares.gather(1, targets[:, None])[:, 0]


def ranks_of(maps: Float[Tensor, "B gh gw"], here: Bool[Tensor, "B gh gw"], *, seed: int) -> Int64[Tensor, "B gh gw"]:
    """0 for the patch with the largest number, and so on; equal ones in a random order, patches that are not there last."""
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for row in maps.masked_fill(~here, -math.inf).flatten(1):
        mixed = torch.randperm(len(row), generator=generator)
        order = mixed[row[mixed].argsort(descending=True, stable=True)]
        ranks.append(order.argsort())
    return torch.stack(ranks).view_as(maps)


def blurred(images: Float[Tensor, "B C H W"], own: Int64[Tensor, "B 2"], patch: Pair) -> Float[Tensor, "B C H W"]:
    """A gaussian blur as wide as a patch, each pixel the weighted mean of those of its own image; padding stays zero."""
    height, width = images.shape[-2:]
    down, across = (torch.arange(side, device=images.device, dtype=torch.float32) for side in (height, width))
    sides = own.to(images.device)
    inside = (down < sides[:, :1])[:, None, :, None] & (across < sides[:, 1:])[:, None, None, :]  # (B, 1, H, W)

    def weights(places: Float[Tensor, " n"], side: int) -> Float[Tensor, "n n"]:
        return torch.exp(-0.5 * ((places[:, None] - places) / (BLUR_PATCHES * side)).square())

    left, right = weights(down, patch[0]), weights(across, patch[1])
    total = left @ inside.float() @ right  # 1 at least inside, for a pixel weighs 1 for itself
    return (left @ (images.float() * inside) @ right / total.clamp(min=1) * inside).to(images.dtype)


# --------------------------------------------------------------------------------------------------------------------
# What to compare with


def random_maps(maps: Maps, *, seed: int = 0) -> Maps:
    """Maps for the same images that know nothing: a random number for each patch."""
    drawn = torch.rand(maps.maps.shape, generator=torch.Generator().manual_seed(seed))
    here = present(maps.own, maps.patch, (maps.maps.shape[1], maps.maps.shape[2]))
    labels = (f"random numbers, seed {seed}",) * len(maps)
    return replace(maps, maps=drawn * here, method="random", labels=labels, signed=False, note="", colors=None)


@torch.no_grad()
def shuffled(model: nn.Module, *, seed: int = 0) -> ViT:
    """A copy that has learned nothing: every parameter's numbers in a random order (after Adebayo et al. 2018).

    Each keeps its mean and spread, so that activations keep their size; what a normalisation has counted stays as it is.
    """
    copied = copy.deepcopy(unwrapped(model))
    generator = torch.Generator().manual_seed(seed)
    for parameter in copied.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copied


def rank_correlation(a: Maps, b: Maps) -> Float[Tensor, " B"]:
    """Spearman's rank correlation of two maps of each image, over the patches that are there; NaN where one is constant.

    Near 1 between maps of a model and of its `shuffled` copy, the map does not depend on what was learned.
    Raises ValueError for maps of other shapes.
    """
    if a.maps.shape != b.maps.shape:
        raise ValueError(
            f"maps of shape {tuple(a.maps.shape)} and {tuple(b.maps.shape)} have no patches in common; use one grid"
        )
    here = present(a.own, a.patch, (a.maps.shape[1], a.maps.shape[2]))
    found = []
    for left, right, there in zip(a.maps, b.maps, here, strict=True):
        x, y = (average_ranks(values[there]) for values in (left, right))
        x, y = x - x.mean(), y - y.mean()
        found.append(((x @ y) / ((x @ x) * (y @ y)).sqrt()).float())
    return torch.stack(found)


def average_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 1 up; equal numbers share the mean of theirs."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1).double() / 2)[which]


# --------------------------------------------------------------------------------------------------------------------
# Side by side


@dataclass(frozen=True, eq=False)
class Compared:
    """One method: its maps, and those it makes of shuffled weights, both scored on the model itself."""

    maps: Maps
    scores: Scores
    shuffled_maps: Maps
    shuffled_scores: Scores
    correlation: Float[Tensor, " B"]
    """Rank correlation of the two; near 1, the map does not depend on what was learned."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods side by side on the same images and classes."""

    methods: dict[str, Compared]
    random: tuple[Scores, ...]
    """Of random maps, draw by draw."""
    classes: tuple[str, ...]
    """What the class of each image is called."""

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
        """A method's mean gap over the images."""
        return self.methods[method].scores.gap.mean().item()

    def save(self, path: str | Path, *, index: int | None = None) -> Path:
        """Writes the curves of one image, or their means over all, as PNG or SVG. Returns the path."""
        from vitrail.explain import plots  # which draws what is defined here
        from vitrail.explain.curves import curves

        return plots.save(curves(self, index=index), path)

    def beats_random(self, method: str) -> bool:
        """Whether a method's mean gap is above that of every draw of random maps: by chance, 1 in draws + 1."""
        return self.gap(method) > self.random_range[1]

    def correlation(self, method: str) -> float | None:
        """A method's mean rank correlation over the images where there is one."""
        value = self.methods[method].correlation.nanmean().item()
        return None if math.isnan(value) else value

    def table(self) -> list[dict[str, str | float | bool | None]]:
        """A row for each method and one for random maps: means over the images; None for what there is not."""
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
        """What the numbers say, in a sentence."""
        best, count = self.methods[self.best].scores, len(self.classes)
        insertion, deletion = best.insertion.mean().item(), best.deletion.mean().item()
        numbers = f"a gap of {self.gap(self.best):.3f} between insertion ({insertion:.3f}) and deletion ({deletion:.3f})"
        low, high = self.random_range
        chance = f"where random orders have {self.random_gap:.3f} ({low:.3f} to {high:.3f} in {len(self.random)} draws)"
        over = f"on {count} image{'s' if count != 1 else ''}"
        if self.beats_random(self.best):
            said = f"The numbers favour {spoken(self.best)} {over}: {numbers}, {chance}"
        else:
            said = f"No method beats every random order {over}: the best, {spoken(self.best)}, has {numbers}, {chance}"
        alike = {name: self.correlation(name) or 0.0 for name in self.methods}
        blind = [f"{spoken(name)} ({value:.2f})" for name, value in alike.items() if value >= HARDLY_CHANGES]
        if blind:
            named = " and ".join(blind)
            said += f"; hardly changed by shuffled weights (rank correlation), so saying little of what was learned: {named}"
        return said + "."

    def _random_gaps(self) -> Float[Tensor, " draws"]:
        return torch.stack([draw.gap.mean() for draw in self.random])


def spoken(method: str) -> str:
    """A method's name in a sentence."""
    return method.replace("_", " ")


def compare(
    model: nn.Module,
    images: Images,
    *,
    methods: str | Sequence[str] = tuple(METHODS),
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
    """Methods side by side: insertion and deletion of each, of the same with shuffled weights, and of random maps.

    The class of an image is the same for all: the one that the model predicts, unless given. `steps` and `baseline` are as
    `faithfulness` takes them, `hold_norms` as `relevance` and `gradcam` do. One method beats all `draws` of random maps by
    chance with probability 1 / (draws + 1), the best of several more often; more images or draws say more. Raises ValueError
    for a method that is none of `METHODS`.
    """
    chosen = [methods] if isinstance(methods, str) else list(methods)
    if not chosen:
        raise ValueError(f"there are no methods to compare; give one or more of {', '.join(METHODS)}")
    for name in chosen:
        if name not in METHODS:
            raise ValueError(f'method "{name}" is none of {", ".join(METHODS)}{nearest(name, list(METHODS))}')
    if draws < 1:
        raise ValueError(f"draws {draws} must be at least 1: without random maps, no score says anything")
    how: dict[str, Any] = {"pad": pad, "sizes": sizes, "patch_size": patch_size, "img_size": img_size}
    blank = shuffled(model, seed=seed)
    with scene(model, images, **how) as seen:
        trial = Trial.of(seen, target=target, steps=steps, baseline=baseline)
        numbers: list[int] = trial.targets.tolist()
        found = {}
        for name in chosen:
            given = how | ({"target": numbers} if name in OF_A_CLASS else {})
            given |= {"hold_norms": hold_norms} if name in OF_A_GRADIENT else {}
            maps, blind = METHODS[name](seen.model, images, **given), METHODS[name](blank, images, **given)
            found[name] = trial.beside(maps, blind, seed=seed)
        chance = (random_maps(maps, seed=seed + draw) for draw in range(draws))
        return Comparison(
            methods=found,
            random=tuple(trial.scores(one, seed=seed) for one in chance),
            classes=tuple(seen.called(number) for number in numbers),
        )

"""Faithfulness of maps: insertion and deletion curves, random maps, and the same method on shuffled weights."""

# B batch · C channels · H W image · gh gw grid · K classes · S steps of a curve · b changed images that run together

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Images, Scene, Target, backbone_of, open_scene, present
from vitrail.explain.maps import Maps
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair

Baseline = Literal["mean", "blur"]

BATCH_TOKENS = 8192
"""Tokens of the images that run together: 41 images of 224 px at /16, 2 of 1024 px."""
BLUR_PATCHES = 1.0
"""Standard deviation of the blur, in patches: what is smaller than a patch is gone, and no edge is left."""


# --------------------------------------------------------------------------------------------------------------------
# Insertion and deletion


@dataclass(frozen=True, eq=False)
class Scores:
    """Insertion and deletion curves of maps: the class's probability as patches change in the order of the map."""

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
        """Insertion minus deletion, -1 to 1; compare it with the gap of random maps."""
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
    """Measure insertion and deletion (Petsiuk et al. 2018, RISE) by whole patches, those with the largest numbers first.

    Deletion puts the `baseline` in the place of a patch: the data's mean colour, or the blurred image. Insertion puts patches
    into the blurred image. Both go from no patch to all in `steps`, or patch by patch where there are fewer; the probability
    is the sigmoid where the model is `multi_label`, else the softmax. Equal numbers come in a random order, drawn from `seed`,
    so a constant map is a random order. Raises ValueError for maps of other images or another grid.
    """
    with open_scene(model, images, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as scene:
        return Trial.of(scene, target=target, steps=steps, baseline=baseline).scores(maps, seed=seed)


@dataclass(frozen=True, eq=False)
class Trial:
    """Images, their target classes, and what replaces their patches: the same for every map."""

    scene: Scene
    targets: Int64[Tensor, " B"]
    counts: Int64[Tensor, "B S"]
    """Number of patches that have been changed, step by step."""
    removed: Float[Tensor, "B C H W"]
    """Images with all patches deleted."""
    blurred: Float[Tensor, "B C H W"]
    """Images that insertion begins with."""

    @classmethod
    def of(cls, scene: Scene, *, target: Target, steps: int, baseline: str) -> Trial:
        """Prepare a trial; the target class is the predicted one unless given.

        Raises ValueError for less than one step, an unknown baseline, and a model without a head.
        """
        if steps < 1:
            raise ValueError(f"steps {steps} must be at least 1")
        if baseline not in ("mean", "blur"):
            raise ValueError(f'baseline "{baseline}" is neither "mean" nor "blur"')
        if not scene.model.config.num_classes:
            raise ValueError("this model has no head, so there is no probability to follow; give it one with reset_head")
        totals = scene.present().sum(dim=(1, 2))  # (B,)
        shares = torch.linspace(0, 1, min(steps, int(totals.max())) + 1, dtype=torch.float64)
        blur = blurred(scene.images, scene.image_sizes, scene.patch)
        return cls(
            scene=scene,
            targets=scene.targets(target, logits_of(scene)),
            counts=(shares * totals[:, None]).round().long(),
            removed=torch.zeros_like(blur) if baseline == "mean" else blur,
            blurred=blur,
        )

    def scores(self, maps: Maps, *, seed: int = 0) -> Scores:
        """Score one map for each image. Raises ValueError for maps of another shape, and for numbers that are not finite."""
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
        ranks = ranks_of(maps.maps, self.scene.present(), seed=seed)
        images = self.scene.images
        return Scores(
            fractions=self.counts / self.counts[:, -1:],
            insertion_curves=self.curves(ranks, before=self.blurred, after=images),
            deletion_curves=self.curves(ranks, before=images, after=self.removed),
        )

    def compare(self, maps: Maps, shuffled: Maps, *, seed: int = 0) -> Compared:
        """Score maps, and those that the same method makes of shuffled weights, both on the model itself."""
        scores, shuffled_scores = (self.scores(one, seed=seed) for one in (maps, shuffled))
        return Compared(maps, scores, shuffled, shuffled_scores, rank_correlation(maps, shuffled))

    @torch.no_grad()
    def curves(
        self, ranks: Int64[Tensor, "B gh gw"], *, before: Float[Tensor, "B C H W"], after: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B S"]:
        """Follow the class's probability as patches pass from one image to the other, the lowest rank first."""
        scene, steps = self.scene, self.counts.shape[1]
        height, width = before.shape[-2:]
        which = torch.arange(len(ranks)).repeat_interleave(steps)  # image by image, step by step
        result = []
        for part in batches(scene, len(which)):
            rows = which[part]
            changed = ranks[rows] < self.counts.flatten()[part, None, None]  # (b, gh, gw)
            pixels = changed.repeat_interleave(scene.patch[0], 1).repeat_interleave(scene.patch[1], 2)
            pixels = pixels[:, None, :height, :width].to(before.device)  # (b, 1, H, W)
            rows = rows.to(before.device)
            logits = logits_in_place(scene, torch.where(pixels, after[rows], before[rows]), rows)
            result.append(probability(logits, self.targets[rows], multi_label=scene.model.multi_label).cpu())
        return torch.cat(result).unflatten(0, (-1, steps))


def batches(scene: Scene, count: int) -> list[slice]:
    """Cut `count` images into batches of at most `BATCH_TOKENS` tokens, or one image."""
    step = max(1, BATCH_TOKENS // scene.positions)
    return [slice(start, start + step) for start in range(0, count, step)]


def logits_of(scene: Scene) -> Float[Tensor, "B K"]:
    """Return the logits of the scene's images, in float32."""
    rows = torch.arange(len(scene.images), device=scene.images.device)
    return torch.cat([logits_in_place(scene, scene.images[part], rows[part]) for part in batches(scene, len(rows))])


@torch.no_grad()
def logits_in_place(scene: Scene, images: Float[Tensor, "b C H W"], rows: Int64[Tensor, " b"]) -> Float[Tensor, "b K"]:
    """Return the logits of changed images, each as large on its canvas as the scene's image of its row."""
    return scene.logits(images, None if scene.sizes is None else scene.sizes[rows]).float()


def probability(logits: Float[Tensor, "b K"], targets: Int64[Tensor, " b"], *, multi_label: bool) -> Float[Tensor, " b"]:
    """Return the probability of one class of each image: its sigmoid with `multi_label`, else its softmax."""
    probabilities = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    return probabilities.gather(1, targets[:, None])[:, 0]


def ranks_of(maps: Float[Tensor, "B gh gw"], here: Bool[Tensor, "B gh gw"], *, seed: int) -> Int64[Tensor, "B gh gw"]:
    """Rank patches from 0 for the largest number; equal ones in a random order, patches that are not there last."""
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for row in maps.masked_fill(~here, -math.inf).flatten(1):
        mixed = torch.randperm(len(row), generator=generator)
        order = mixed[row[mixed].argsort(descending=True, stable=True)]
        ranks.append(order.argsort())
    return torch.stack(ranks).view_as(maps)


def blurred(images: Float[Tensor, "B C H W"], image_sizes: Int64[Tensor, "B 2"], patch: Pair) -> Float[Tensor, "B C H W"]:
    """Blur with a gaussian as wide as a patch, each pixel the weighted mean of those of its own image; padding stays zero."""
    height, width = images.shape[-2:]
    down, across = (torch.arange(side, device=images.device, dtype=torch.float32) for side in (height, width))
    sides = image_sizes.to(images.device)
    inside = (down < sides[:, :1])[:, None, :, None] & (across < sides[:, 1:])[:, None, None, :]  # (B, 1, H, W)

    def weights(places: Float[Tensor, " n"], side: int) -> Float[Tensor, "n n"]:
        return torch.exp(-0.5 * ((places[:, None] - places) / (BLUR_PATCHES * side)).square())

    left, right = weights(down, patch[0]), weights(across, patch[1])
    total = left @ inside.float() @ right  # 1 at least inside, for a pixel weighs 1 for itself
    return (left @ (images.float() * inside) @ right / total.clamp(min=1) * inside).to(images.dtype)


# --------------------------------------------------------------------------------------------------------------------
# References: random maps and shuffled weights


@dataclass(frozen=True, eq=False)
class Compared:
    """One method: its maps, and those it makes of shuffled weights, both scored on the model itself."""

    maps: Maps
    scores: Scores
    shuffled_maps: Maps
    shuffled_scores: Scores
    correlation: Float[Tensor, " B"]
    """Rank correlation of the two; near 1, the map does not depend on what was learned."""


def random_maps(maps: Maps, *, seed: int = 0) -> Maps:
    """Return maps for the same images with a uniform random number for each patch."""
    drawn = torch.rand(maps.maps.shape, generator=torch.Generator().manual_seed(seed))
    here = present(maps.image_sizes, maps.patch, (maps.maps.shape[1], maps.maps.shape[2]))
    labels = (f"random numbers, seed {seed}",) * len(maps)
    return replace(maps, maps=drawn * here, method="random", labels=labels, signed=False, note="", colors=None)


@torch.no_grad()
def shuffled(model: nn.Module, *, seed: int = 0) -> Backbone:
    """Return a copy that has learned nothing: every parameter's numbers in a random order (after Adebayo et al. 2018).

    Each keeps its mean and spread, so that activations keep their size; the statistics of normalisations stay as they are.
    """
    copied = copy.deepcopy(backbone_of(model))
    generator = torch.Generator().manual_seed(seed)
    for parameter in copied.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copied


def rank_correlation(a: Maps, b: Maps) -> Float[Tensor, " B"]:
    """Return Spearman's rank correlation of two maps of each image, over the patches that are there; NaN where one is constant.

    Near 1 between maps of a model and of its `shuffled` copy, the map does not depend on what was learned.
    Raises ValueError for maps of other shapes.
    """
    if a.maps.shape != b.maps.shape:
        raise ValueError(
            f"maps of shape {tuple(a.maps.shape)} and {tuple(b.maps.shape)} have no patches in common; use one grid"
        )
    here = present(a.image_sizes, a.patch, (a.maps.shape[1], a.maps.shape[2]))
    result = []
    for left, right, there in zip(a.maps, b.maps, here, strict=True):
        x, y = (average_ranks(values[there]) for values in (left, right))
        x, y = x - x.mean(), y - y.mean()
        result.append(((x @ y) / ((x @ x) * (y @ y)).sqrt()).float())
    return torch.stack(result)


def average_ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Rank from 1 up; equal numbers share the mean of their ranks."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1).double() / 2)[which]

"""The model as a whole: how far its heads look, how sharply and how alike, and what its layers make of the tokens.

Images stream by, some at a time, and of each layer's attention some rows at a time: what stays in memory is a few numbers per
head, the tokens of a sample, and their norms.
"""

# B batch · D width · L patches · T prefix tokens · N tokens = T + L · Q queries
# layers, heads of the model · stages = layers + 1: before the first block, and behind each

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor, nn

from vitrail.config import Pair
from vitrail.data.batch import Batch
from vitrail.data.decode import Picture
from vitrail.explain.inputs import Images, Scene, require_finite_output, scene, unwrapped
from vitrail.explain.walk import Walk, in_chunks, reader, weights
from vitrail.models import ViT
from vitrail.models.vit import Attended

OUTLIER = 3.0
"""A patch token is an outlier where its norm is above this many times its layer's median: half-way, by ratio, to the ten times
as large ones of Darcet et al. 2024 (section 1)."""
CKA_TOKENS = 1024
"""Patch tokens that CKA is computed from: a random sample, where there are more."""
NORM_TOKENS = 262_144
"""Patch tokens that the median and percentile of norms are taken from: a random sample, where there are more."""
COMPONENTS = 28
"""Of the patch filters, at most; as many as figure 7 of Dosovitskiy et al. 2021 shows."""

Verdict = Literal["more", "less", "same", "open"]


# --------------------------------------------------------------------------------------------------------------------
# The result


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenNorms:
    """Euclidean norms of the patch tokens, before the first block and behind each."""

    median: Float[Tensor, " stages"]
    p99: Float[Tensor, " stages"]
    """The 99th percentile."""
    max: Float[Tensor, " stages"]
    outliers: Float[Tensor, " stages"]
    """Share of tokens whose norm is above OUTLIER times the stage's median (the high-norm tokens of Darcet et al. 2024)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelStatistics:
    """What `head_statistics` found. Tensors are on the CPU, in float32; means are over an image's patches, then over images."""

    distance: Float[Tensor, "layers heads"]
    """Mean attention distance in pixels of the image as the model sees it (Dosovitskiy et al. 2021, figures 7 and 11): between
    the centres of the patch that asks and the patches that it looks at, weighted by the attention among patches."""
    entropy: Float[Tensor, "layers heads"]
    """Bits, of the rows of all patches; a row goes over all tokens, prefix tokens too."""
    cls_to_patch: Float[Tensor, "layers heads"]
    """What the class token gives the patches; prefix tokens, itself among them, have the rest. `asks` says who asks where the
    model has no class token."""
    patch_to_prefix: Float[Tensor, "layers heads"]
    """What patches give the prefix tokens."""
    head_similarity: Float[Tensor, "layers heads heads"]
    """Of two heads: the cosine between the square roots of their rows, mean over the rows of all patches. 1 where they look at
    the same, 0 where at nothing in common (Bhattacharyya 1943)."""
    cka: Float[Tensor, "stages stages"]
    """Linear CKA (Kornblith et al. 2019) between the patch tokens of two stages, by the unbiased estimate of HSIC; NaN below
    four tokens. Each token is an example, for images are few."""
    token_norms: TokenNorms
    filters: Float[Tensor, "k C fh fw"]
    """Principal components of the patch filters (figure 7, left), each of norm 1, its largest number positive. With the
    convolutional stem, of its first convolution."""
    filter_shares: Float[Tensor, " k"]
    """Share of the filters' variance that each component explains."""
    positions: Float[Tensor, "gh gw gh gw"] | None
    """Cosine similarity of the position embeddings of two patches (figure 7, centre), on the model's own grid; None without."""
    images: int
    """How many were looked at."""
    patch: Pair
    """Height and width of a patch, in pixels."""
    grids: tuple[Pair, ...]
    """Patches down and across; more than one where images had several sizes."""
    prefix_tokens: int
    even_distance: float
    """The distance, in pixels, of a head that looks at all patches alike."""
    even_entropy: float
    """The entropy, in bits, of a row that gives all tokens the same: the highest there is."""
    asks: str
    """"class token", or "tokens that the head reads"."""
    notes: tuple[str, ...]
    """What one has to know to read the numbers."""

    @property
    def layers(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(f"layer {index}" for index in range(len(self.distance)))

    @property
    def heads(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(f"head {index}" for index in range(self.distance.shape[1]))

    @property
    def side(self) -> float:
        """Pixels in the unit "patches": the side of a square as large as one."""
        return math.sqrt(self.patch[0] * self.patch[1])

    @property
    def redundancy(self) -> Float[Tensor, " layers"]:
        """Mean of `head_similarity` over the pairs of different heads; NaN for a single head."""
        heads = self.distance.shape[1]
        different = ~torch.eye(heads, dtype=torch.bool)
        return self.head_similarity[:, different].mean(dim=1)

    def save(self, path: str | Path) -> Path:
        """Writes all plots on one page, as PNG or SVG. Returns the path. Raises ValueError for another ending."""
        from vitrail.explain import plots  # which draws what is defined here

        return plots.save(plots.overview(self), path)

    def table(self) -> list[dict[str, int | float | None]]:
        """A row of plain numbers for each layer, None where there is none: mean, least and greatest head."""
        norms, redundancy = self.token_norms, self.redundancy
        rows: list[dict[str, int | float | None]] = []
        for layer in range(len(self.distance)):
            distance = self.distance[layer]
            numbers = {
                "distance_px": distance.mean(),
                "distance_patches": distance.mean() / self.side,
                "distance_px_min": distance.min(),
                "distance_px_max": distance.max(),
                "entropy_bits": self.entropy[layer].mean(),
                "entropy_bits_min": self.entropy[layer].min(),
                "entropy_bits_max": self.entropy[layer].max(),
                "cls_to_patch": self.cls_to_patch[layer].mean(),
                "patch_to_prefix": self.patch_to_prefix[layer].mean(),
                "redundancy": redundancy[layer],
                "cka_with_input": self.cka[layer, layer + 1],
                "norm_median": norms.median[layer + 1],
                "norm_p99": norms.p99[layer + 1],
                "norm_max": norms.max[layer + 1],
                "outlier_share": norms.outliers[layer + 1],
            }
            rows.append({"layer": layer} | {name: _plain(number) for name, number in numbers.items()})
        return rows

    def early_and_late(self) -> EarlyAndLate:
        """The first third of the layers beside the last; halves, below six layers.

        Raises ValueError for a single layer.
        """
        depth = len(self.distance)
        if depth < 2:
            raise ValueError("this model has 1 layer; early and late take two")
        part = depth // 3 if depth >= 6 else depth // 2
        first, last = range(part), range(depth - part, depth)
        norms = self.token_norms
        measured = [
            ("distance", self.distance / self.side),
            ("entropy", self.entropy),
            ("cls_to_patch", self.cls_to_patch if self.prefix_tokens else None),  # else it is 1, by nature
            ("redundancy", self.redundancy if self.distance.shape[1] > 1 else None),
            ("norm_median", norms.median[1:]),
            ("outlier_share", norms.outliers[1:]),
        ]
        findings = (
            _finding(name, values[list(first)], values[list(last)], first, last, asks=self.asks)
            for name, values in measured
            if values is not None
        )
        return EarlyAndLate(first, last, tuple(findings))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One quantity in the early and in the late layers."""

    name: str
    """"distance" (patches), "entropy" (bits), "cls_to_patch", "redundancy", "norm_median" or "outlier_share"."""
    early: float
    """Mean over layers, and over heads where each has its own number."""
    late: float
    spread: float | None
    """Standard deviation within a part, pooled over both; None where each part is a single number."""
    low: float
    high: float
    """The least and the greatest number in either part."""
    verdict: Verdict
    """Of the late layers: "more" or "less" where the means differ by more than the spread, "same" where they do not, "open"
    where there is no spread to judge by."""
    sentence: str


@dataclass(frozen=True)
class EarlyAndLate:
    """What became of the layers from the first to the last, as far as numbers show it."""

    early: range
    late: range
    findings: tuple[Finding, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for each finding."""
        return tuple(finding.sentence for finding in self.findings)


class _Words(NamedTuple):
    says: str  # {early}, {late}: numbers · {first}, {last}: layers
    more: str
    less: str
    form: Literal["number", "share"] = "number"
    of: str = "heads"  # what varies within a part


_WORDS = {
    "distance": _Words("heads look {early} patches far in {first} and {late} in {last}", "look farther", "look nearer"),
    "entropy": _Words(
        "the attention of patches has {early} bits in {first} and {late} bits in {last}", "spread it wider", "focus it more"
    ),
    "cls_to_patch": _Words(
        "of the attention of the {asks}, patches have {early} in {first} and {late} in {last}",
        "give patches more",
        "give patches less",
        "share",
    ),
    "redundancy": _Words(
        "two heads of a layer are {early} alike in {first} and {late} in {last} (1 is the same, 0 nothing in common)",
        "have heads more alike",
        "have heads less alike",
        of="layers",
    ),
    "norm_median": _Words(
        "the median patch token has norm {early} behind {first} and {late} behind {last}",
        "make longer tokens",
        "make shorter tokens",
        of="layers",
    ),
    "outlier_share": _Words(
        "{early} of patch tokens are outliers behind {first} and {late} behind {last} (norm above "
        f"{OUTLIER:g} times the layer's median)",
        "have more",
        "have fewer",
        "share",
        of="layers",
    ),
}


def _finding(name: str, early: Tensor, late: Tensor, first: range, last: range, *, asks: str) -> Finding:
    """Means, spread, verdict, and the sentence that says them."""
    words, both = _WORDS[name], torch.cat([early, late])
    start, end = early.double().mean().item(), late.double().mean().item()
    apart = end - start
    spread = None if early.numel() < 2 else math.sqrt((early.double().var().item() + late.double().var().item()) / 2)
    low, high = both.min().item(), both.max().item()
    verdict: Verdict = "more" if apart > 0 else "less"
    rounding = 1e-6 * max(abs(low), abs(high))
    if abs(apart) <= max(spread or 0, rounding):
        verdict = "same"
    elif spread is None:
        verdict = "open"

    def said(number: float, *, difference: bool = False) -> str:
        if words.form == "share":
            return f"{100 * number:.1f} points" if difference else f"{number:.1%}"
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"

    sentence = words.says.format(early=said(start), late=said(end), first=_named(first), last=_named(last), asks=asks)
    direction = f"late layers {words.more if apart > 0 else words.less}, by {said(abs(apart), difference=True)}"
    if abs(apart) <= rounding:
        ending = "no difference"
    elif spread is None:
        ending = f"{direction}; one number each, so no spread to judge it by"
    else:
        ranges = f"{words.of} from {said(low)} to {said(high)}"
        within = f"standard deviation within a part {said(spread, difference=True)}, {ranges}"
        beyond = f"{direction}, beyond the spread ({within})"
        level = f"no difference beyond the spread ({said(abs(apart), difference=True)} apart, {within})"
        ending = level if verdict == "same" else beyond
    return Finding(
        name=name,
        early=start,
        late=end,
        spread=spread,
        low=low,
        high=high,
        verdict=verdict,
        sentence=f"{sentence}: {ending}",
    )


def _named(layers: range) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"


def _plain(number: Tensor) -> float | None:
    value = number.item()
    return value if math.isfinite(value) else None


# --------------------------------------------------------------------------------------------------------------------
# The pass


@torch.inference_mode(False)  # sums that grow can't be of the caller's inference mode, for the scene leaves it
@torch.no_grad()
def head_statistics(
    model: nn.Module,
    images: Images | Iterable[Any],
    *,
    batch_size: int = 16,
    pad: bool = False,
    sizes: Int64[Tensor, "n 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> ModelStatistics:
    """Statistics of every layer and head over images, and of the filters and positions that they begin with.

    `images` are normalised, (B, C, H, W), or pictures, or any iterable of batches: tensors, (tensor, labels) or `Batch`. They
    are taken `batch_size` at a time, and what comes out does not depend on it. `sizes` has a row for each image of the whole
    stream. `pad`, `patch_size` and `img_size` are as for `attention`. Raises ValueError where there is no image, for sizes that
    do not fit the images, and for a model without layers.
    """
    vit = unwrapped(model)
    if not vit.config.depth:
        raise ValueError("this model has no layers, so there is no attention to measure; give one with depth 1 or more")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    tally = Tally(vit)
    for part in batches(images, batch_size):
        own = None
        if sizes is not None:
            own = sizes[tally.images : tally.images + len(part)]
            if len(own) < len(part):
                raise ValueError(f"sizes has {len(sizes)} rows, and there are more images; give height and width of each")
            if own.min() < 1:
                raise ValueError(f"sizes has a side of {own.min().item()} px; each must be at least 1")
        with scene(vit, part, pad=pad, sizes=own, patch_size=patch_size, img_size=img_size) as seen:
            tally.add(seen)
    if not tally.images:
        raise ValueError("there are no images; give at least one")
    if sizes is not None and len(sizes) > tally.images:
        raise ValueError(f"sizes has {len(sizes)} rows for {tally.images} images; give height and width of each")
    return tally.statistics()


def batches(images: Images | Iterable[Any], batch_size: int) -> Iterator[Tensor | list[Picture]]:
    """Whatever holds images, in parts of at most `batch_size`."""
    if isinstance(images, str | Path | bytes | Image.Image | np.ndarray):
        yield [images]
        return
    pictures: list[Picture] = []
    stream: Iterable[Any] = [images] if isinstance(images, Tensor) else images
    for item in stream:
        held: Any = item.images if isinstance(item, Batch) else item
        if isinstance(held, tuple | list) and held and isinstance(held[0], Tensor):  # as a DataLoader gives: images, labels
            held = held[0]
        if not isinstance(held, Tensor):
            pictures.append(held)
            if len(pictures) == batch_size:
                yield pictures
                pictures = []
        elif held.ndim != 4:
            yield held  # its error says how it should be
        elif len(held):
            yield from held.split(batch_size)
    if pictures:
        yield pictures


class Tally:
    """What is known so far. Sums are over images, each with the same weight."""

    def __init__(self, model: ViT) -> None:
        depth, heads = model.config.depth, model.config.num_heads
        self.model = model
        self.images = 0
        self.distance, self.entropy, self.cls_to_patch, self.patch_to_prefix = torch.zeros(4, depth, heads, dtype=torch.float64)
        self.head_similarity = torch.zeros(depth, heads, heads, dtype=torch.float64)
        self.even_distance = self.even_entropy = 0.0
        self.features, self.norms = Sample(CKA_TOKENS), Sample(NORM_TOKENS)
        self.largest = torch.zeros(depth + 1)
        self.tokens = 0
        self.generator = torch.Generator().manual_seed(0)
        self.grids: dict[Pair, None] = {}  # a set that keeps its order
        self.patch: Pair = (0, 0)
        self.note = ""

    @torch.no_grad()  # a scene lets gradients be
    def add(self, seen: Scene) -> None:
        """Some more images, layer by layer: nothing of a layer stays but its numbers."""
        prefix, (x, mask) = self.model.prefix_tokens, seen.embed()
        patches = seen.grid[0] * seen.grid[1]
        there = torch.ones(len(x), patches, dtype=torch.bool) if mask is None else mask[:, prefix:].cpu()
        # a key for each patch, image by image: the sample is the same however the images are put into batches
        keys = torch.stack([torch.rand(patches, generator=self.generator, dtype=torch.float64) for _ in range(len(x))])[there]
        present = there.flatten().nonzero()[:, 0]
        chosen = present[self.features.admit(keys)].to(x.device)
        measured, present = self.norms.admit(keys), present.to(x.device)
        share = F.pad(there / there.sum(dim=1, keepdim=True), (prefix, 0)).to(x.device)  # (B, N), each row sums to one
        places = F.pad(centres(seen.grid, seen.patch), (0, 0, prefix, 0)).to(x.device)  # (N, 2)

        features, norms, onto = [], [], []
        for layer, block in enumerate((None, *self.model.blocks)):
            if block is not None:
                kept: list[Attended] = []
                x = block.forward(x, mask, kept)  # not block(): a compiled block has no place for what is kept
                onto.append(self.look(layer - 1, kept[0], mask, share, places))
            tokens = x[:, prefix:].flatten(0, 1)  # (B L, D)
            features.append(tokens[chosen].float().cpu())
            norms.append(tokens.float().norm(dim=1)[present].cpu())
        require_finite_output(x, "output of the last layer", so="its statistics mean nothing")
        self.features.add(torch.stack(features))
        every = torch.stack(norms)  # (stages, tokens)
        self.largest = torch.maximum(self.largest, every.amax(dim=1))
        self.norms.add(every[:, measured])

        row = torch.zeros_like(share)
        row[:, :1] = 1
        if not self.model.config.class_token:
            row, self.note = reader(Walk(seen, {}, x, mask))
        self.cls_to_patch += _summed(torch.einsum("bn,lbhn->blh", row, torch.stack(onto)))
        for count, shape in zip(there.sum(dim=1).tolist(), _shapes(there.unflatten(1, seen.grid)), strict=True):
            self.even_distance += even_distance(shape, seen.patch)
            self.even_entropy += math.log2(prefix + count)
        self.images, self.tokens = self.images + len(x), self.tokens + len(present)
        self.grids[seen.grid], self.patch = None, seen.patch

    def look(
        self,
        layer: int,
        seen: Attended,
        mask: Tensor | None,
        share: Float[Tensor, "B N"],
        places: Float[Tensor, "N 2"],
    ) -> Float[Tensor, "B h N"]:
        """Adds what a layer's heads do; what every token gives the patches. `share` is each query's part in the mean."""
        prefix, onto = self.model.prefix_tokens, []
        for part in in_chunks(seen):
            rows, own = weights(seen, part, mask), share[:, None, part]  # (B, h, Q, N), (B, 1, Q)
            among, far = rows[..., prefix:], distances(places[part], places[prefix:])
            onto.append(among.sum(dim=3))  # (B, h, Q)
            reach = (among * far).sum(dim=3) / onto[-1].clamp(min=torch.finfo(rows.dtype).tiny)
            self.distance[layer] += _summed((own * reach).sum(dim=2))
            self.entropy[layer] += _summed((own * torch.special.entr(rows).sum(dim=3)).sum(dim=2)) / math.log(2)
            self.patch_to_prefix[layer] += _summed((own * rows[..., :prefix].sum(dim=3)).sum(dim=2))
            roots = rows.sqrt_().mul_(own.sqrt()[..., None]).flatten(2)  # (B, h, Q N)
            self.head_similarity[layer] += _summed(roots @ roots.mT)
        return torch.cat(onto, dim=2)

    def statistics(self) -> ModelStatistics:
        """The means, and what the weights alone say."""
        filters, shares = filter_components(self.model)
        return ModelStatistics(
            distance=(self.distance / self.images).float(),
            entropy=(self.entropy / self.images).float(),
            cls_to_patch=(self.cls_to_patch / self.images).float(),
            patch_to_prefix=(self.patch_to_prefix / self.images).float(),
            head_similarity=(self.head_similarity / self.images).float(),
            cka=linear_cka(self.features.rows),
            token_norms=token_norms(self.norms.rows, self.largest),
            filters=filters,
            filter_shares=shares,
            positions=position_similarity(self.model),
            images=self.images,
            patch=self.patch,
            grids=tuple(self.grids),
            prefix_tokens=self.model.prefix_tokens,
            even_distance=self.even_distance / self.images,
            even_entropy=self.even_entropy / self.images,
            asks="class token" if self.model.config.class_token else "tokens that the head reads",
            notes=tuple(self.notes()),
        )

    def notes(self) -> Iterator[str]:
        """What is not as one would think."""
        cfg, sampled = self.model.config, self.features.rows.shape[1]
        if self.note:
            yield self.note
        if cfg.num_heads == 1:
            yield "one head a layer: there is no other for it to be like"
        if sampled < 4:
            yield f"CKA needs four patch tokens, and there are {sampled}"
        elif self.images == 1:
            yield "one image: CKA compares the patches within it, and nothing between images"
        if self.tokens > sampled:
            yield f"CKA is of {sampled:,} patch tokens, drawn from {self.tokens:,}"
        if self.tokens > self.norms.rows.shape[1]:
            yield f"median and percentile of norms are of {self.norms.rows.shape[1]:,} patch tokens, drawn from {self.tokens:,}"
        if len(self.grids) > 1:
            yield "images had several sizes: " + ", ".join(f"{down}x{across} patches" for down, across in self.grids)
        if cfg.stem == "conv":
            yield "convolutional stem: the filters are its first convolution's, 3x3 pixels and no patches"
        if cfg.pos_embed == "none":
            yield "no position embedding"


class Sample:
    """Up to `size` of the rows that stream by, each as likely to be in it as any other: those with the smallest random keys."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys = torch.empty(0, dtype=torch.float64)
        self.rows = torch.empty(0)
        """(stages, count, …)"""

    def admit(self, keys: Float[Tensor, " new"]) -> Int64[Tensor, " _"]:
        """Which of the new rows belong to it: `add` them next. Those that they push out leave it."""
        every, before = torch.cat([self.keys, keys]), len(self.keys)
        stay = every.topk(min(self.size, len(every)), largest=False).indices.sort().values
        if before:
            self.rows = self.rows[:, stay[stay < before]]
        self.keys = every[stay]
        return stay[stay >= before] - before

    def add(self, rows: Float[Tensor, "stages _ *rest"]) -> None:
        """The rows that were admitted."""
        self.rows = torch.cat([self.rows, rows], dim=1) if self.rows.numel() else rows


def _summed(each: Float[Tensor, B * rest]) -> Float[Tensor, "*rest"]:
    """Over the images, in double precision, which not every device has."""
    return each.cpu().double().sum(dim=0)


def _shapes(there: Bool[Tensor, "B gh gw"]) -> Iterator[Pair]:
    """Patches down and across that hold pixels of each image."""
    yield from zip(there.any(dim=2).sum(dim=1).tolist(), there.any(dim=1).sum(dim=1).tolist(), strict=True)


# --------------------------------------------------------------------------------------------------------------------
# The formulas


def centres(grid: Pair, patch: Pair) -> Float[Tensor, "L 2"]:
    """Of the patches, (y, x) in pixels, row by row."""
    y, x = ((torch.arange(count) + 0.5) * side for count, side in zip(grid, patch, strict=True))
    return torch.cartesian_prod(y, x)


def distances(a: Float[Tensor, "Q 2"], b: Float[Tensor, "L 2"]) -> Float[Tensor, "Q L"]:
    """Between places, in pixels."""
    return torch.hypot(a[:, None, 0] - b[:, 0], a[:, None, 1] - b[:, 1])


@cache
def even_distance(grid: Pair, patch: Pair) -> float:
    """Mean distance in pixels between the centres of two patches, each drawn from the whole grid."""

    def steps(count: int) -> Float[Tensor, " _"]:  # how likely each step from one row, or column, to another is
        likely = 2 * (count - torch.arange(count, dtype=torch.float64)) / count**2
        likely[0] /= 2
        return likely

    down, across = (torch.arange(count, dtype=torch.float64) * side for count, side in zip(grid, patch, strict=True))
    return (steps(grid[0]) @ torch.hypot(down[:, None], across) @ steps(grid[1])).item()


def linear_cka(features: Float[Tensor, "stages n _"]) -> Float[Tensor, "stages stages"]:
    """Linear CKA (Kornblith et al. 2019, section 3) between stages, from the same n examples of each.

    HSIC is the unbiased estimate (Song et al. 2012, equation 5; as Nguyen et al. 2021 use it): the plain one nears 1 for
    anything where examples are no more than channels. Unrelated stages are near 0, on either side. NaN for n < 4, and for a
    stage whose examples are all the same.
    """
    stages, n = features.shape[:2]
    if n < 4:
        return torch.full((stages, stages), math.nan)
    return _cosines(torch.stack([_centred_gram(stage) for stage in features]))


def _centred_gram(features: Float[Tensor, "n D"]) -> Float[Tensor, " _"]:
    """XXᵀ without its diagonal, centred so that the sum of two such matrices' products is n (n - 3) HSIC; flat."""
    n = len(features)
    x = features.double() - features[0].double()  # exactly zero where all are the same
    x = x - x.mean(dim=0)
    gram = (x @ x.T).fill_diagonal_(0)
    sums = gram.sum(dim=0) / (n - 2)
    gram = gram - sums - sums[:, None] + sums.sum() / (n - 1)
    return gram.fill_diagonal_(0).flatten().float()


def _cosines(rows: Float[Tensor, "stages _"]) -> Float[Tensor, "stages stages"]:
    rows = rows / rows.norm(dim=1, keepdim=True)
    return rows @ rows.T


def token_norms(norms: Float[Tensor, "stages n"], largest: Float[Tensor, " stages"]) -> TokenNorms:
    """Of a sample of tokens, and of the largest of all."""
    median, p99 = (torch.stack([stage.quantile(share) for stage in norms]) for share in (0.5, 0.99))
    outliers = (norms > OUTLIER * median[:, None]).float().mean(dim=1)
    return TokenNorms(median=median, p99=p99, max=largest, outliers=outliers)


def filter_components(model: ViT, *, count: int = COMPONENTS) -> tuple[Float[Tensor, "k C fh fw"], Float[Tensor, " k"]]:
    """Principal components of the D patch filters, and the share of their variance that each explains.

    With the convolutional stem, of its first convolution: what the projection behind it sees are no pixels.
    """
    first = next((layer for layer in model.patch_embed.stem.modules() if isinstance(layer, nn.Conv2d)), model.patch_embed.proj)
    weight = first.weight.detach().cpu().double()  # (D, C, fh, fw)
    flat = weight.flatten(1)
    _, values, components = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    kept = min(count, int((values > 1e-6 * weight.abs().max()).sum()))
    components = components[:kept]
    components = components * components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()
    shares = values[:kept].square() / values.square().sum()
    return components.unflatten(1, weight.shape[1:]).float(), shares.float()


def position_similarity(model: ViT) -> Float[Tensor, "gh gw gh gw"] | None:
    """Cosine similarity between the position embeddings of patches; None for a model without."""
    if model.pos_embed is None:
        return None
    rows = F.normalize(model.pos_embed.detach()[0, model.placed_tokens :].cpu().float(), dim=1)
    return (rows @ rows.T).unflatten(1, model.grid).unflatten(0, model.grid)

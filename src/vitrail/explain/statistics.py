"""Statistics of all layers and heads: attention distance and entropy, redundancy of heads, CKA and token norms.

Images stream by in batches, and of each layer's attention some rows at a time: what stays in memory is a few numbers for each
head, the tokens of a sample, and their norms.
"""

# B batch · D width · L patches · T prefix tokens · N tokens = T + L · Q queries · h heads · gh gw grid
# layers, heads of the model · stages = layers + 1: before the first block, and behind each

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.data.decode import Picture
from vitrail.explain import plots
from vitrail.explain.inputs import (
    Images,
    Scene,
    backbone_of,
    is_picture,
    open_scene,
    require_finite_output,
    require_global_attention,
)
from vitrail.explain.layer_statistics import OUTLIER, LayerStatistics, TokenNorms
from vitrail.explain.passes import ForwardPass, attention_rows, embed, head_reading, query_chunks
from vitrail.models import ViT
from vitrail.models.attention import Attended
from vitrail.settings import Pair

CKA_TOKENS = 1024
"""Patch tokens that CKA is computed from: a random sample, where there are more."""
NORM_TOKENS = 262_144
"""Patch tokens that the median and percentile of norms are taken from: a random sample, where there are more."""
COMPONENTS = 28
"""Principal components of the patch filters, at most; as many as figure 7 of Dosovitskiy et al. 2021 shows."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelStatistics(LayerStatistics):
    """Statistics of a model, with their plots."""

    def save(self, path: str | Path) -> Path:
        """Write all plots on one page, as PNG or SVG, and return the path. Raises ValueError for another suffix."""
        return plots.save(plots.overview(self), path)


# --------------------------------------------------------------------------------------------------------------------
# The pass


@torch.inference_mode(False)  # running sums must not be inference tensors: the scene leaves inference mode
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
    """Measure every layer and head over images, and the patch filters and position embeddings.

    `images` are normalised, (B, C, H, W), or pictures, or any iterable of batches: tensors, (tensor, labels) or `Batch`. They
    are taken `batch_size` at a time, which does not change the result. `sizes` has a row for each image of the whole stream.
    `pad`, `patch_size` and `img_size` are as for `attention`. Raises ValueError where there is no image, for sizes that do not
    fit the images, and for a model without layers or without global attention.
    """
    vit = require_global_attention(backbone_of(model), "head_statistics")
    if not vit.config.depth:
        raise ValueError("this model has no layers, so there is no attention to measure; give one with depth 1 or more")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1")
    running = RunningStatistics(vit)
    for part in batches(images, batch_size):
        part_sizes = None
        if sizes is not None:
            part_sizes = sizes[running.images : running.images + len(part)]
            if len(part_sizes) < len(part):
                raise ValueError(f"sizes has {len(sizes)} rows, and there are more images; give height and width of each")
            if part_sizes.min() < 1:
                raise ValueError(f"sizes has a side of {part_sizes.min().item()} px; each must be at least 1")
        with open_scene(vit, part, pad=pad, sizes=part_sizes, patch_size=patch_size, img_size=img_size) as scene:
            running.add(scene)
    if not running.images:
        raise ValueError("there are no images; give at least one")
    if sizes is not None and len(sizes) > running.images:
        raise ValueError(f"sizes has {len(sizes)} rows for {running.images} images; give height and width of each")
    return running.statistics()


def batches(images: Images | Iterable[Any], batch_size: int) -> Iterator[Tensor | list[Picture]]:
    """Yield batches of at most `batch_size` from a tensor, pictures, or an iterable of batches."""
    if is_picture(images):
        yield [images]  # type: ignore[list-item]
        return
    pictures: list[Picture] = []
    stream: Iterable[Any] = [images] if isinstance(images, Tensor) else images  # type: ignore[assignment]
    for item in stream:
        value: Any = item.images if isinstance(item, Batch) else item
        if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):  # as a DataLoader gives: images, labels
            value = value[0]
        if not isinstance(value, Tensor):
            pictures.append(value)
            if len(pictures) == batch_size:
                yield pictures
                pictures = []
        elif value.ndim != 4:
            yield value  # `open_scene` raises the error
        elif len(value):
            yield from value.split(batch_size)
    if pictures:
        yield pictures


class RunningStatistics:
    """Sums over the images so far, each with the same weight."""

    def __init__(self, model: ViT) -> None:
        depth, heads = model.config.depth, model.attention_heads()
        self.model = model
        self.images = 0
        self.distance, self.entropy, self.cls_to_patch, self.patch_to_prefix = torch.zeros(4, depth, heads, dtype=torch.float64)
        self.head_similarity = torch.zeros(depth, heads, heads, dtype=torch.float64)
        self.even_distance = self.even_entropy = 0.0
        self.features, self.norms = TokenSample(CKA_TOKENS), TokenSample(NORM_TOKENS)
        self.largest = torch.zeros(depth + 1)
        self.tokens = 0
        self.generator = torch.Generator().manual_seed(0)
        self.grids: dict[Pair, None] = {}  # an ordered set
        self.patch: Pair = (0, 0)
        self.note = ""

    @torch.no_grad()
    def add(self, scene: Scene) -> None:
        """Add some images, layer by layer: of a layer only its sums are kept."""
        prefix, (x, context) = self.model.prefix_tokens, embed(scene)
        mask = self.model.valid_tokens(context)
        patches = scene.grid[0] * scene.grid[1]
        here = torch.ones(len(x), patches, dtype=torch.bool) if mask is None else mask[:, prefix:].cpu()
        # a key for each patch, image by image: the sample does not depend on the batches
        keys = torch.stack([torch.rand(patches, generator=self.generator, dtype=torch.float64) for _ in range(len(x))])[here]
        present = here.flatten().nonzero()[:, 0]
        chosen = present[self.features.admit(keys)].to(x.device)
        measured, present = self.norms.admit(keys), present.to(x.device)
        share = F.pad(here / here.sum(dim=1, keepdim=True), (prefix, 0)).to(x.device)  # (B, N), each row sums to one
        places = F.pad(centres(scene.grid, scene.patch), (0, 0, prefix, 0)).to(x.device)  # (N, 2)

        features, norms, on_patches = [], [], []
        for layer, block in enumerate((None, *self.model.blocks)):
            if block is not None:
                kept: list[Attended] = []
                x = block.forward(x, context, kept)  # not block(): a compiled block does not fill `kept`
                on_patches.append(self.add_layer(layer - 1, kept[0], mask, share, places))
            tokens = x[:, prefix:].flatten(0, 1)  # (B L, D)
            features.append(tokens[chosen].float().cpu())
            norms.append(tokens.float().norm(dim=1)[present].cpu())
        require_finite_output(x, "output of the last layer", so="its statistics mean nothing")
        self.features.add(torch.stack(features))
        all_norms = torch.stack(norms)  # (stages, tokens)
        self.largest = torch.maximum(self.largest, all_norms.amax(dim=1))
        self.norms.add(all_norms[:, measured])

        row = torch.zeros_like(share)
        row[:, :1] = 1
        if not self.model.config.class_token:
            row, self.note = head_reading(ForwardPass(scene, {}, x, context))
        self.cls_to_patch += _sum_over_images(torch.einsum("bn,lbhn->blh", row, torch.stack(on_patches)))
        for count, shape in zip(here.sum(dim=1).tolist(), _shapes(here.unflatten(1, scene.grid)), strict=True):
            self.even_distance += even_distance(shape, scene.patch)
            self.even_entropy += math.log2(prefix + count)
        self.images, self.tokens = self.images + len(x), self.tokens + len(present)
        self.grids[scene.grid], self.patch = None, scene.patch

    def add_layer(
        self,
        layer: int,
        attended: Attended,
        mask: Tensor | None,
        share: Float[Tensor, "B N"],
        places: Float[Tensor, "N 2"],
    ) -> Float[Tensor, "B h N"]:
        """Add a layer's heads and return each token's attention on the patches. `share` is each query's weight in the mean."""
        prefix, on_patches = self.model.prefix_tokens, []
        for chunk in query_chunks(attended):
            rows, shares = attention_rows(attended, chunk, mask), share[:, None, chunk]  # (B, h, Q, N), (B, 1, Q)
            among, far = rows[..., prefix:], distances(places[chunk], places[prefix:])
            on_patches.append(among.sum(dim=3))  # (B, h, Q)
            reach = (among * far).sum(dim=3) / on_patches[-1].clamp(min=torch.finfo(rows.dtype).tiny)
            self.distance[layer] += _sum_over_images((shares * reach).sum(dim=2))
            self.entropy[layer] += _sum_over_images((shares * torch.special.entr(rows).sum(dim=3)).sum(dim=2)) / math.log(2)
            self.patch_to_prefix[layer] += _sum_over_images((shares * rows[..., :prefix].sum(dim=3)).sum(dim=2))
            roots = rows.sqrt_().mul_(shares.sqrt()[..., None]).flatten(2)  # (B, h, Q N)
            self.head_similarity[layer] += _sum_over_images(roots @ roots.mT)
        return torch.cat(on_patches, dim=2)

    def statistics(self) -> ModelStatistics:
        """Return the means over the images, and the statistics of the weights alone."""
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
            query_name="class token" if self.model.config.class_token else "tokens that the head reads",
            notes=tuple(self.notes()),
        )

    def notes(self) -> Iterator[str]:
        """Yield what to know to read the numbers."""
        cfg, sampled = self.model.config, self.features.rows.shape[1]
        if self.note:
            yield self.note
        if self.model.attention_heads() == 1:
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
        if (first := first_convolution(self.model)) is not self.model.patch_embed.proj:
            height, width = first.kernel_size
            yield f"convolutional stem: the filters are its first convolution's, {height}x{width} pixels and no patches"
        if cfg.pos_embed == "none":
            yield "no position embedding"


class TokenSample:
    """A uniform random sample of up to `size` rows of a stream: those with the smallest random keys."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys = torch.empty(0, dtype=torch.float64)
        self.rows = torch.empty(0)
        """(stages, count, …)"""

    def admit(self, keys: Float[Tensor, " new"]) -> Int64[Tensor, " _"]:
        """Return which of the new rows enter the sample, to be `add`ed next, and drop those that they replace."""
        all_keys, before = torch.cat([self.keys, keys]), len(self.keys)
        stay = all_keys.topk(min(self.size, len(all_keys)), largest=False).indices.sort().values
        if before:
            self.rows = self.rows[:, stay[stay < before]]
        self.keys = all_keys[stay]
        return stay[stay >= before] - before

    def add(self, rows: Float[Tensor, "stages _ *rest"]) -> None:
        """Add the rows that were admitted."""
        self.rows = torch.cat([self.rows, rows], dim=1) if self.rows.numel() else rows


def _sum_over_images(each: Float[Tensor, "B ..."]) -> Float[Tensor, "*rest"]:
    """Sum over the images on the CPU, in double precision, which not every device has."""
    return each.cpu().double().sum(dim=0)


def _shapes(here: Bool[Tensor, "B gh gw"]) -> Iterator[Pair]:
    """Yield the patches down and across that hold pixels of each image."""
    yield from zip(here.any(dim=2).sum(dim=1).tolist(), here.any(dim=1).sum(dim=1).tolist(), strict=True)


# --------------------------------------------------------------------------------------------------------------------
# The formulas


def centres(grid: Pair, patch: Pair) -> Float[Tensor, "L 2"]:
    """Return the centres of the patches, (y, x) in pixels, row by row."""
    y, x = ((torch.arange(count) + 0.5) * side for count, side in zip(grid, patch, strict=True))
    return torch.cartesian_prod(y, x)


def distances(a: Float[Tensor, "Q 2"], b: Float[Tensor, "L 2"]) -> Float[Tensor, "Q L"]:
    """Return the distances between places, in pixels."""
    return torch.hypot(a[:, None, 0] - b[:, 0], a[:, None, 1] - b[:, 1])


@cache
def even_distance(grid: Pair, patch: Pair) -> float:
    """Return the mean distance in pixels between the centres of two patches, each drawn from the whole grid."""

    def steps(count: int) -> Float[Tensor, " _"]:  # how likely each step from one row, or column, to another is
        likely = 2 * (count - torch.arange(count, dtype=torch.float64)) / count**2
        likely[0] /= 2
        return likely

    down, across = (torch.arange(count, dtype=torch.float64) * side for count, side in zip(grid, patch, strict=True))
    return (steps(grid[0]) @ torch.hypot(down[:, None], across) @ steps(grid[1])).item()


def linear_cka(features: Float[Tensor, "stages n _"]) -> Float[Tensor, "stages stages"]:
    """Return linear CKA (Kornblith et al. 2019, section 3) between stages, from the same n examples of each.

    HSIC is the unbiased estimate (Song et al. 2012, equation 5; as Nguyen et al. 2021 use it): the plain one nears 1 for
    anything where examples are no more than channels. Unrelated stages are near 0, on either side. NaN for n < 4, and for a
    stage whose examples are all the same.
    """
    stages, n = features.shape[:2]
    if n < 4:
        return torch.full((stages, stages), math.nan)
    return _cosines(torch.stack([_centred_gram(stage) for stage in features]))


def _centred_gram(features: Float[Tensor, "n D"]) -> Float[Tensor, " _"]:
    """Return XXᵀ without its diagonal, centred so that the sum of two such matrices' products is n (n - 3) HSIC; flat."""
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
    """Return median, percentile and outliers of a sample of norms, and the largest norms of all tokens."""
    median, p99 = (torch.stack([stage.quantile(share) for stage in norms]) for share in (0.5, 0.99))
    outliers = (norms > OUTLIER * median[:, None]).float().mean(dim=1)
    return TokenNorms(median=median, p99=p99, max=largest, outliers=outliers)


def filter_components(model: ViT, *, count: int = COMPONENTS) -> tuple[Float[Tensor, "k C fh fw"], Float[Tensor, " k"]]:
    """Return principal components of the D patch filters, and the share of their variance that each explains.

    With a convolutional stem, of its first convolution: what the projection behind it sees are no pixels.
    """
    weight = first_convolution(model).weight.detach().cpu().double()  # (D, C, fh, fw)
    flat = weight.flatten(1)
    _, values, components = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    kept = min(count, int((values > 1e-6 * weight.abs().max()).sum()))
    components = components[:kept]
    components = components * components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()
    shares = values[:kept].square() / values.square().sum()
    return components.unflatten(1, weight.shape[1:]).float(), shares.float()


def first_convolution(model: ViT) -> nn.Conv2d:
    """Return the convolution that takes the images."""
    layers = [layer for layer in model.patch_embed.modules() if isinstance(layer, nn.Conv2d)]
    return next((layer for layer in layers if layer is not model.patch_embed.proj), model.patch_embed.proj)


def position_similarity(model: ViT) -> Float[Tensor, "gh gw gh gw"] | None:
    """Return the cosine similarity between the position embeddings of patches; None for a model without."""
    if model.pos_embed is None:
        return None
    rows = F.normalize(model.positions(model.grid).detach()[0, model.placed_tokens :].cpu().float(), dim=1)
    return (rows @ rows.T).unflatten(1, model.grid).unflatten(0, model.grid)

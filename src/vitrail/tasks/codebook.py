"""Codebook of discrete tokens: k-means on vectors of patches, and the vectors: pixels, or features of a frozen model."""

# B batch · C channels · H W image · L patches · X numbers of a patch · K tokens · P patches that k-means sees

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Split
from vitrail.data.draws import Draws, permutation
from vitrail.data.subset import Subset
from vitrail.evaluate.evaluate import Among, over_batches
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair, Preprocessing
from vitrail.tasks.patches import Images, patch_statistics, to_patches
from vitrail.tasks.teacher import convert_preprocessing

PATCHES_EACH = 32
"""Patches that k-means sees for each token, at most."""
LEAST_PATCHES_EACH = 4
"""Patches that k-means sees for each token, at least: a data set with fewer gets a smaller codebook."""
ITERATIONS = 20
_CELLS = 2**25  # distances at once: 128 MiB


class Usage(NamedTuple):
    """How evenly the patches of a sample are spread over the tokens."""

    patches: int
    used: int
    """Tokens that some patch has."""
    perplexity: float
    """exp of the entropy of the tokens' shares, from 1 to the number of tokens."""


class Codebook(nn.Module):
    """Centres of k-means, in buffers: a checkpoint holds them, and no step changes them. A patch's token is its nearest."""

    centers: Float[Tensor, "K X"]

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(codes, width))

    @torch.no_grad()
    def forward(self, vectors: Float[Tensor, "B M X"]) -> Int64[Tensor, "B M"]:
        """Return the tokens of patches."""
        return nearest(vectors.float().flatten(0, 1), self.centers)[0].unflatten(0, vectors.shape[:2])

    @torch.no_grad()
    def fit(self, points: Float[Tensor, "P X"], *, seed: int) -> Usage:
        """Set the centres to those of k-means on these patches, in their order and by the seed. Return their usage."""
        self.centers.copy_(kmeans(points, codes=len(self.centers), seed=seed))
        return self.usage(points)

    @torch.no_grad()
    def usage(self, points: Float[Tensor, "P X"]) -> Usage:
        """Count the tokens of patches."""
        counts = nearest(points, self.centers)[0].bincount(minlength=len(self.centers)).double()
        shares = counts[counts > 0] / counts.sum()
        return Usage(len(points), len(shares), float((-(shares * shares.log()).sum()).exp()))


def kmeans(points: Float[Tensor, "P X"], *, codes: int, seed: int, iterations: int = ITERATIONS) -> Float[Tensor, "K X"]:
    """Compute centres of k-means (Lloyd 1982): from random points, until no point changes its centre or `iterations` are over.

    A centre without points moves to the point that is farthest from its own, the next one to the next. The result is a
    function of the points, their order and the seed: sums are made in one order on every device. Raises ValueError for fewer
    points than centres.
    """
    if len(points) < codes:
        raise ValueError(
            f"k-means has {len(points):,} patches for {codes:,} tokens; lower beit.codebook, or raise beit.fit_images"
        )
    centers = points[permutation(len(points), seed=seed, epoch=0)[:codes].to(points.device)].clone()
    before = None
    for _ in range(iterations):
        codes_of_points, distances = nearest(points, centers)
        if before is not None and torch.equal(codes_of_points, before):
            break
        before = codes_of_points
        counts = codes_of_points.bincount(minlength=codes)  # (K,)
        order = codes_of_points.argsort(stable=True)
        sums = torch.segment_reduce(points[order], "sum", lengths=counts, axis=0, unsafe=True, initial=0)
        centers = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            centers[empty] = points[distances.argsort(descending=True, stable=True)[: len(empty)]]
    return centers


def nearest(points: Float[Tensor, "P X"], centers: Float[Tensor, "K X"]) -> tuple[Int64[Tensor, " P"], Float[Tensor, " P"]]:
    """Return the nearest centre of each point, the first of equals, and the squared distance to it."""
    codes, distances = [], []
    offsets = centers.square().sum(dim=1)
    for part in points.split(max(1, _CELLS // len(centers))):
        least = torch.addmm(offsets, part, centers.T, alpha=-2).min(dim=1)  # (p,): |c|² - 2 x·c
        codes.append(least.indices)
        distances.append(least.values + part.square().sum(dim=1))
    return torch.cat(codes), torch.cat(distances)


# --------------------------------------------------------------------------------------------------------------------
# Vectors of patches


class PatchVectors(nn.Module):
    """Function from normalised images to a vector of each patch, without gradients. Sub-classes compute them."""

    width: int
    """Numbers of a vector."""

    def forward(self, images: Images) -> Float[Tensor, "B L X"]:
        """Return a vector of each patch, row by row."""
        raise NotImplementedError


class PixelVectors(PatchVectors):
    """Pixels of each patch, without their mean, or without mean and deviation."""

    def __init__(self, patch: Pair, *, channels: int, normalise: Literal["none", "mean", "std"]) -> None:
        """Raise ValueError for patches of one number, which have no deviation."""
        super().__init__()
        self.patch, self.normalise = patch, normalise
        self.width = patch[0] * patch[1] * channels
        if normalise == "std" and self.width < 2:
            raise ValueError('beit.normalise "std" needs patches of at least 2 numbers; use a larger patch, or "none"')

    def forward(self, images: Images) -> Float[Tensor, "B L X"]:
        """See PatchVectors.forward."""
        patches = to_patches(images.float(), self.patch)
        if self.normalise == "none":
            return patches
        mean, std = patch_statistics(patches)
        return patches - mean if self.normalise == "mean" else (patches - mean) / std


class FeatureVectors(PatchVectors):
    """Patch features of a frozen model, of length 1; it sees images in a size where its last map has a cell for each patch."""

    def __init__(self, model: Backbone, *, preprocessing: Preprocessing, student: Preprocessing, patch: Pair) -> None:
        """Wrap a model, which has this `preprocessing`, for images of the preprocessing `student` in these patches.

        Raises ValueError for a model without a map of features.
        """
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.preprocessing, self.student, self.patch = preprocessing, student, patch
        weight = next(model.parameters())
        with torch.no_grad():
            own = torch.zeros(1, preprocessing.in_channels, *preprocessing.img_size, device=weight.device, dtype=weight.dtype)
            features = model.features(own)
        if not features.pyramid:
            raise ValueError(f"{type(model).__name__} has no map of features")
        (height, width), last = preprocessing.img_size, features.pyramid[-1]
        self.width = last.shape[1]
        self.stride = features.stride or (height // last.shape[2], width // last.shape[3])

    def forward(self, images: Images) -> Float[Tensor, "B L X"]:
        """See PatchVectors.forward."""
        grid = images.shape[2] // self.patch[0], images.shape[3] // self.patch[1]
        size = grid[0] * self.stride[0], grid[1] * self.stride[1]
        converted = convert_preprocessing(images, source=self.student, target=replace(self.preprocessing, img_size=size))
        with torch.no_grad():
            pyramid = self.model.features(converted).pyramid
        assert pyramid
        assert tuple(pyramid[-1].shape[2:]) == grid
        return F.normalize(pyramid[-1].float().flatten(2).mT, dim=2)


def codebook_size(codes: int, *, images: int, patches: int) -> int:
    """Return the number of tokens of a codebook fitted to so many images of so many patches; at least 2."""
    return max(2, min(codes, images * patches // LEAST_PATCHES_EACH))


def sample_vectors(
    vectors: PatchVectors,
    view: Split,
    *,
    codes: int,
    images: int,
    preprocessing: Preprocessing,
    seed: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
    among: Among,
) -> Float[Tensor, "P X"]:
    """Compute the vectors of random patches of random images in evaluation view, on the CPU, the same in every process.

    Each process reads its part of at most `images`; as many patches of each are taken as make `PATCHES_EACH` for each token.
    """
    positions = permutation(len(view), seed=seed, epoch=0)[:images].sort().values
    each = -(-PATCHES_EACH * codes // len(positions))

    def take(found: Tensor, raw: RawBatch) -> tuple[Tensor, Tensor]:
        indexes = raw.indexes.cpu()
        order = Draws(seed=seed, epoch=0, indexes=positions[indexes]).uniform("codebook", found.shape[1]).argsort(dim=1)
        chosen = order[:, :each].sort(dim=1).values.to(found.device)  # (B, m)
        return indexes, found.float().gather(1, chosen[:, :, None].expand(-1, -1, found.shape[2])).cpu()

    parts = over_batches(
        take, vectors, Subset(view, positions), preprocessing, device=device, autocast_dtype=autocast_dtype, among=among
    )
    found = [pair for part in among.gather(parts) for pair in part]
    if not found:
        raise ValueError("no image can be read to fit the codebook to; see skipped.txt")
    indexes, points = torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])
    return points[indexes.argsort()].flatten(0, 1)

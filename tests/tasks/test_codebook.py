"""The codebook: k-means beside a loop written straight, empty centres, equal results in any process, vectors of patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitrail.data.batches import Part
from vitrail.data.memory import FixedSplit
from vitrail.evaluate.evaluate import ALONE, Among
from vitrail.models import Swin, ViT
from vitrail.settings import Preprocessing
from vitrail.tasks import codebook
from vitrail.tasks.codebook import Codebook, FeatureVectors, PixelVectors, codebook_size, kmeans, nearest, sample_vectors

IMAGES = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def split(count: int = 20) -> FixedSplit:
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return FixedSplit(images, labels=torch.zeros(count, dtype=torch.long), names=[str(i) for i in range(count)])


def sample(**over: object) -> Tensor:
    options = {"codes": 3, "images": 12, "preprocessing": IMAGES, "seed": 0, "among": ALONE}
    vectors = PixelVectors((4, 4), channels=3, normalise="std")
    return sample_vectors(vectors, split(), device=torch.device("cpu"), autocast_dtype=None, **options | over)


def clouds(count: int, *, at: int = 5, width: int = 3) -> Tensor:
    """Points around `at` distant places."""
    g = torch.Generator().manual_seed(1)
    return 10 * torch.randn(at, width, generator=g).repeat(count // at, 1) + 0.1 * torch.randn(count, width, generator=g)


def straight_kmeans(points: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm, one point and one centre after the other; no centre is ever empty here."""
    for _ in range(iterations):
        members: list[list[Tensor]] = [[] for _ in centers]
        for point in points:
            distances = [float((point - center).square().sum()) for center in centers]
            members[distances.index(min(distances))].append(point)
        centers = torch.stack([torch.stack(own).mean(0) for own in members])
    return centers


def test_kmeans_is_lloyds(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    start = kmeans(points, codes=4, seed=3, iterations=0)
    assert all((points == center).all(dim=1).any() for center in start)
    expected = straight_kmeans(points, start, 3)
    torch.testing.assert_close(kmeans(points, codes=4, seed=3, iterations=3), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(codebook, "_CELLS", 28)  # 7 points at a time
    torch.testing.assert_close(kmeans(points, codes=4, seed=3, iterations=3), expected, atol=1e-5, rtol=1e-5)


def test_empty_centres_find_points() -> None:
    """Of 200 points 196 are one: nearly all centres start there, and all but one of these are empty."""
    points = torch.cat([torch.zeros(196, 2), torch.tensor([[5.0, 0], [0, 5], [-5, 0], [0, -5]])])
    centers = kmeans(points, codes=5, seed=0)
    assert {tuple(center) for center in centers.round().tolist()} == {(0, 0), (5, 0), (0, 5), (-5, 0), (0, -5)}


def test_clouds_are_found_and_seeds_matter() -> None:
    points = clouds(500)
    fitted = Codebook(16, 3)
    usage = fitted.fit(points, seed=0)
    assert (usage.patches, usage.used) == (500, 16)
    assert 5 <= usage.perplexity <= 16
    assert nearest(points, fitted.centers)[1].mean() < 0.05
    again, other = Codebook(16, 3), Codebook(16, 3)
    again.fit(points, seed=0)
    other.fit(points, seed=1)
    assert again.centers.equal(fitted.centers)
    assert not other.centers.equal(fitted.centers)


def test_usage_and_tokens_are_by_value() -> None:
    fitted = Codebook(3, 1)
    fitted.centers.copy_(torch.tensor([[0.0], [10.0], [99.0]]))
    assert fitted(torch.tensor([[[1.0], [9.0], [60.0]]])).tolist() == [[0, 1, 2]]
    usage = fitted.usage(torch.tensor([[0.0], [1.0], [2.0], [9.0]]))
    assert (usage.patches, usage.used) == (4, 2)
    assert usage.perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert list(fitted.state_dict()) == ["centers"]


def test_too_few_patches_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^k-means has 3 patches for 4 tokens; lower beit.codebook, or raise beit.fit_images$"
    ):
        kmeans(torch.zeros(3, 2), codes=4, seed=0)
    assert codebook_size(8192, images=10, patches=16) == 40
    assert codebook_size(8192, images=2000, patches=196) == 8192
    assert codebook_size(8192, images=1, patches=4) == 2


# --------------------------------------------------------------------------------------------------------------------
# Vectors


def test_processes_share_the_images_and_have_the_same_sample() -> None:
    whole = sample()
    assert whole.shape == (12 * 8, 48)  # ⌈3 * 32 / 12⌉ patches of each image
    parts: list[list[object]] = []
    for index in range(2):
        sample(among=Among(part=Part(index, 2), gather=lambda own: (parts.append(own), [own])[1]))
    assert sample(among=Among(part=Part(0, 2), gather=lambda own: parts)).equal(whole)
    assert not sample(seed=1).equal(whole)


def test_pixels_are_patches_less_mean_and_deviation() -> None:
    images = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    patch = images[1, :, 4:8, 8:12].permute(1, 2, 0).flatten()
    for normalise, expected in (
        ("none", patch),
        ("mean", patch - patch.mean()),
        ("std", (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()),
    ):
        found = PixelVectors((4, 4), channels=3, normalise=normalise)(images)
        assert found.shape == (2, 6, 48)
        torch.testing.assert_close(found[1, 5], expected)
    with pytest.raises(ValueError, match=r'^beit.normalise "std" needs patches of at least 2 numbers; use a larger patch, or '):
        PixelVectors((1, 1), channels=1, normalise="std")


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_features_have_the_grid_of_the_patches(name: str) -> None:
    """A model of other patches and channels sees the images in another size, where a cell of its map is a patch."""
    torch.manual_seed(0)
    if name == "vit":
        net = ViT(img_size=12, patch_size=6, in_channels=1, embed_dim=24, depth=1, num_heads=3, num_classes=0)
    else:
        options = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
        net = Swin(img_size=12, patch_size=3, in_channels=1, num_classes=0, **options)
    own = Preprocessing(img_size=(12, 12), in_channels=1, mean=(0.4,), std=(0.3,))
    vectors = FeatureVectors(net, preprocessing=own, student=IMAGES, patch=(4, 4))
    found = vectors(torch.randn(2, 3, 16, 8))
    assert vectors.stride == (6, 6)
    assert found.shape == (2, 8, vectors.width)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, 8))
    assert not found.requires_grad

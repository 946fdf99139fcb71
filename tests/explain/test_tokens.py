"""Components and cosines of tokens: against NumPy, on images whose foreground is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrail.explain import TokenPca, pca, similarity
from vitrail.explain.methods import pca as pca_module
from vitrail.models import ViT

TINY = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def tiny(**fields: object) -> ViT:
    torch.manual_seed(0)
    model = ViT(**TINY | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def see_through() -> ViT:
    """Blocks that change nothing: a patch's token is its projection, behind every layer."""
    model = tiny(pos_embed="none", final_norm=False)
    with torch.no_grad():
        for block in model.blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
    return model


def object_in_the_middle(offset: float) -> Tensor:
    """Two images with 3x3 patches that stand out of 6x6; in the second they are one row higher."""
    images = 0.1 * torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    images[0, :, 8:20, 8:20] += offset
    images[1, :, 4:16, 8:20] += offset
    return images


def where_it_is() -> Tensor:
    foreground = torch.zeros(2, 6, 6, dtype=torch.bool)
    foreground[0, 2:5, 2:5] = True
    foreground[1, 1:4, 2:5] = True
    return foreground


def patch_rows(model: ViT, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.patch_embed(images).flatten(0, 1).double().numpy()


def by_svd(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and shares of variance."""
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return u * s, s**2 / (s**2).sum()


# --------------------------------------------------------------------------------------------------------------------
# Components


@pytest.mark.parametrize("offset", [2.0, -2.0])
def test_the_foreground_is_the_object_whichever_sign_its_component_has(offset: float) -> None:
    found = pca(see_through(), object_in_the_middle(offset))
    assert torch.equal(found.foreground, where_it_is())
    assert torch.equal(found.maps > 0, where_it_is())
    assert "border" in found.note
    assert found.labels == ("layer 1, 25% foreground",) * 2


def test_components_and_shares_are_numpys() -> None:
    model, images = see_through(), object_in_the_middle(2.0)
    found, rows = pca(model, images, layer=0), patch_rows(model, images)
    first, first_shares = by_svd(rows)
    ours, theirs = found.maps.flatten().numpy(), first[:, 0] / first[:, 0].std()
    np.testing.assert_allclose(ours, theirs * np.sign(ours @ theirs), atol=1e-5)
    front = where_it_is().flatten().numpy()
    parts, shares = by_svd(rows[front])
    for channel in range(3):
        scaled = (parts[:, channel] - parts[:, channel].min()) / np.ptp(parts[:, channel])
        color = found.colors.flatten(0, 2)[:, channel].numpy()[front]
        np.testing.assert_allclose(color, scaled if np.corrcoef(color, scaled)[0, 1] > 0 else 1 - scaled, atol=1e-5)
    np.testing.assert_allclose(found.explained, [first_shares[0], *shares[:3]], atol=1e-6)


def test_colours_run_from_0_to_1_and_the_background_is_black() -> None:
    found = pca(see_through(), object_in_the_middle(2.0))
    assert not found.colors[~found.foreground].any()
    front = found.colors[found.foreground]
    torch.testing.assert_close(front.amin(dim=0), torch.zeros(3))
    torch.testing.assert_close(front.amax(dim=0), torch.ones(3))


def test_signs_do_not_depend_on_the_order_of_the_images() -> None:
    model, images = see_through(), object_in_the_middle(2.0)
    one, turned = pca(model, images), pca(model, images.flip(0))
    torch.testing.assert_close(turned.maps.flip(0), one.maps)
    torch.testing.assert_close(turned.colors.flip(0), one.colors)


def test_patches_that_are_not_there_have_no_say() -> None:
    model, images, sizes = see_through(), object_in_the_middle(2.0), torch.tensor([[24, 24], [20, 21]])
    found = pca(model, images, sizes=sizes)
    images[1, :, 20:] = 50.0
    same = pca(model, images, sizes=sizes)
    torch.testing.assert_close(same.maps, found.maps)
    torch.testing.assert_close(same.colors, found.colors)
    assert not found.maps[1, 5:].any()
    assert not found.foreground[1, 5:].any()
    assert found.maps[1, :5].all()  # 21 px reach into the sixth column
    assert not torch.equal(pca(model, images).foreground[0], found.foreground[0])  # told nothing, they decide


def test_the_border_is_that_of_the_image_not_of_its_canvas() -> None:
    here = torch.zeros(1, 5, 5, dtype=torch.bool)
    here[0, :4, :3] = True
    expected = here.clone()
    expected[0, 1:3, 1] = False
    assert torch.equal(pca_module.border(here), expected)


def test_a_grid_that_is_all_border_says_so() -> None:
    images = object_in_the_middle(2.0)[..., 8:16, :]  # 2 rows of patches
    assert "arbitrary" in pca(see_through(), images).note


def test_a_threshold_moves_the_cut() -> None:
    model, images = see_through(), object_in_the_middle(2.0)
    maps = pca(model, images).maps
    middle = maps[where_it_is()].median().item()
    assert torch.equal(pca(model, images, threshold=middle).foreground, maps > middle)


def test_one_image_of_several_keeps_its_own_foreground() -> None:
    found = pca(see_through(), object_in_the_middle(2.0))
    one = found.at(1)
    assert isinstance(one, TokenPca)
    assert torch.equal(one.foreground, where_it_is()[1:])
    assert torch.equal(one.colors, found.colors[1:])
    assert one.explained == found.explained


def test_a_column_that_does_not_vary_is_half() -> None:
    parts = torch.tensor([[0.0, 1.0, 5.0], [4.0, 1.0, 5.0 + 1e-6], [1.0, 1.0, 5.0]])
    expected = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.5, 0.5], [0.25, 0.5, 0.5]])
    torch.testing.assert_close(pca_module.to_unit_range(parts), expected)


def test_behind_the_last_layer_the_last_norm_counts() -> None:
    model, images = tiny(reg_tokens=2), object_in_the_middle(1.0)
    with torch.no_grad():
        out = model.outputs(images)
    for layer, tokens in ((-1, out.tokens), (1, out.tokens), (0, out.features[0]), (-2, out.features[0])):
        first, _ = by_svd(tokens[:, 3:].flatten(0, 1).double().numpy())
        ours = pca(model, images, layer=layer).maps.flatten().numpy()
        assert abs(np.corrcoef(ours, first[:, 0])[0, 1]) > 1 - 1e-6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layer": 2}, "layer 2 does not exist"),
        ({"threshold": 50.0}, "threshold 50.0 leaves no foreground, for the first component ends at"),
    ],
)
def test_pca_says_what_is_possible(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pca(see_through(), object_in_the_middle(2.0), **asked)


def test_images_without_anything_in_them_have_no_components() -> None:
    with pytest.raises(ValueError, match="all patches have the same token behind layer 1"):
        pca(see_through(), torch.ones(1, 3, 24, 24))


# --------------------------------------------------------------------------------------------------------------------
# Cosines


def cosines(tokens: Tensor, query: int) -> np.ndarray:
    x = tokens.double().numpy()
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    return np.einsum("bnd,bd->bn", unit, unit[:, query])


@pytest.mark.parametrize("layer", [0, -1])
def test_similarity_of_a_patch_is_numpys_cosine(layer: int) -> None:
    model = tiny(reg_tokens=2)
    images = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))  # 4 x 6 patches
    with torch.no_grad():
        out = model.outputs(images)
    tokens = out.features[0] if layer == 0 else out.tokens
    found = similarity(model, images, query=(9, 5), layer=layer)  # row 1, column 2
    np.testing.assert_allclose(found.maps.flatten(1).numpy(), cosines(tokens, 3 + 1 * 6 + 2)[:, 3:], atol=1e-5)
    torch.testing.assert_close(found.maps[:, 1, 2], torch.ones(2))
    assert found.signed
    assert found.labels == (f"layer {layer % 2}, patch at 9,5",) * 2


def test_similarity_of_the_class_token_is_numpys_cosine() -> None:
    model, images = tiny(), object_in_the_middle(1.0)
    with torch.no_grad():
        expected = cosines(model.forward_features(images), 0)[:, 1:]
    np.testing.assert_allclose(similarity(model, images).maps.flatten(1).numpy(), expected, atol=1e-5)


def test_similarity_is_zero_where_no_patch_is() -> None:
    sizes = torch.tensor([[24, 24], [12, 20]])
    maps = similarity(tiny(), object_in_the_middle(1.0), query=(4, 4), sizes=sizes).maps
    assert maps[0].all()
    assert maps[1, :3, :5].all()
    assert not maps[1, 3:].any()
    assert not maps[1, :, 5:].any()


def test_similarity_says_which_queries_are_possible() -> None:
    images, sizes = object_in_the_middle(1.0), torch.tensor([[24, 24], [12, 20]])
    with pytest.raises(ValueError, match="no class token; ask for a patch by a pixel"):
        similarity(tiny(class_token=False, pool="avg"), images)
    with pytest.raises(ValueError, match="query 24,0 is outside the image of 24x24 px"):
        similarity(tiny(), images, query=(24, 0))
    with pytest.raises(ValueError, match=r"query 20,3 is in the padding of image 1 \(20x12 px\)"):
        similarity(tiny(), images, query=(20, 3), sizes=sizes)

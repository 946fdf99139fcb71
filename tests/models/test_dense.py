"""Feature maps of every family: their values, their gradients, and no change of what `explain` chooses for a ViT."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

import vitrail
from vitrail.explain import gradcam
from vitrail.explain.inputs import offers_of, spatial
from vitrail.explain.table import NEEDS, default_method
from vitrail.models import Baseline, create_baseline
from vitrail.models.backbone import View
from vitrail.models.vit import ViT
from vitrail.settings.baseline import BaselineConfig


def tiny(**fields: Any) -> ViT:
    torch.manual_seed(0)
    shape = {"img_size": (16, 12), "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 3}
    model = ViT(**shape | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(height: int = 16, width: int = 12) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def the_map(model: nn.Module, x: Tensor, view: View = View()) -> Tensor:
    pyramid = model.features(x, view).pyramid  # type: ignore[operator]
    assert pyramid is not None
    return pyramid[-1]


# --------------------------------------------------------------------------------------------------------------------
# The plain ViT


def test_the_map_of_a_vit_is_its_patch_tokens_in_place() -> None:
    model = tiny(reg_tokens=2)
    features = model.features(images())
    assert features.tokens is not None
    assert features.pyramid is not None
    (level,) = features.pyramid
    assert level.shape == (2, 8, 4, 3)
    assert torch.equal(level[:, :, 2, 1], features.tokens[:, 3 + 2 * 3 + 1])
    assert torch.equal(model.features(images()).pooled, model.outputs(images()).embedding)


@pytest.mark.parametrize("fields", [{"pool": "avg", "class_token": False}, {"pool": "avg"}, {"pool": "map"}, {"pool": "cls"}])
def test_gradients_of_the_logits_reach_the_map(fields: dict[str, Any]) -> None:
    """The same as those that the tokens get, which a logit of the class token gives nothing after the last block."""
    model = tiny(**fields)
    features = model.features(images())
    assert features.tokens is not None
    assert features.pyramid is not None
    logit = model.head(features.pooled)[:, 1].sum()
    on_map, on_tokens = torch.autograd.grad(logit, [features.pyramid[0], features.tokens])
    torch.testing.assert_close(on_map.flatten(2).mT, on_tokens[:, model.prefix_tokens :])
    assert bool(on_map.abs().max() > 0) == (fields["pool"] != "cls")


@given(chosen=st.lists(st.integers(-3, 2), max_size=5), side=st.sampled_from([(16, 12), (8, 8), (20, 16)]))
@settings(max_examples=20)
def test_maps_of_several_blocks(chosen: list[int], side: tuple[int, int]) -> None:
    model, x = tiny(reg_tokens=1), images(*side)
    with torch.no_grad():
        features, out = model.features(x, View(blocks=tuple(chosen))), model.outputs(x)
    assert torch.equal(features.pooled, out.embedding)
    assert features.pyramid is not None
    assert len(features.pyramid) == len(chosen)
    for block, level in zip(chosen, features.pyramid, strict=True):
        assert level.shape == (2, 8, side[0] // 4, side[1] // 4)
        assert torch.equal(level.flatten(2).mT, model.norm(out.features[block])[:, 2:])


@pytest.mark.parametrize("size", [(224, 224), (96, 96), (64, 128)])
def test_the_same_maps_as_timm(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=size, num_classes=0).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = vitrail.load(theirs, img_size=size)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, indices=[0, 2], norm=True, intermediates_only=True)
        found = ours.features(x, View(blocks=(0, -1))).pyramid
        assert found is not None
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(the_map(ours, x), expected[-1], atol=1e-5, rtol=1e-5)


def test_hidden_patches_have_no_map() -> None:
    model, visible = tiny(), torch.arange(12).expand(2, -1).flip(1)
    assert model.features(images(), View(visible=visible)).pyramid is None  # all of them, in another order
    assert tiny(patch_drop_rate=0.5).train().features(images()).pyramid is None
    with pytest.raises(ValueError, match=r"^View.blocks are maps of all patches, and some are hidden here; leave them out"):
        model.features(images(), View(visible=visible, blocks=(0,)))
    for block in (3, -4):
        with pytest.raises(ValueError, match=rf"^block {block} does not exist; this model has blocks 0 to 2 \(or -3 to -1\)$"):
            model.features(images(), View(blocks=(block,)))
    assert not View(blocks=()).whole


def test_maps_of_a_view() -> None:
    assert the_map(tiny(), images(14, 11), View(pad=True)).shape == (2, 8, 4, 3)
    assert the_map(tiny(), images(), View(patch_size=(8, 4))).shape == (2, 8, 2, 3)


def test_explain_chooses_for_a_vit_as_before() -> None:
    """A map offers nothing that global attention does not, and the default stays."""
    model = tiny()
    assert offers_of(model) == frozenset(NEEDS)
    assert default_method(offers_of(model)) == "relevance"
    assert default_method(offers_of(tiny(num_classes=0))) == "attention"
    space = spatial(model, images())
    assert (space.grid, space.patch, space.prefix) == ((4, 3), (4, 4), 1)


# --------------------------------------------------------------------------------------------------------------------
# Models of other libraries

SHAPES = {
    "torchvision:resnet18": [(64, 32), (64, 16), (128, 8), (256, 4), (512, 2)],
    "torchvision:swin_t": [(8, 16), (16, 8)],
    "torchvision:vit_b_32": [(8, 2)],
    "torchvision:squeezenet1_1": [(64, 31), (128, 15), (256, 7), (512, 3)],
    "timm:test_resnet": [(32, 32), (32, 16), (48, 8), (192, 4), (96, 2)],
    "timm:test_vit": [(64, 4)],
}


def baseline(name: str) -> Baseline:
    """Torchvision's transformers with smaller layers than any of their names has."""
    torch.manual_seed(0)
    config = BaselineConfig(name=name, num_classes=3, img_size=64)
    if name == "torchvision:vit_b_32":
        return Baseline(config, VisionTransformer(64, 32, 1, 2, 8, 8, num_classes=3)).eval()
    if name == "torchvision:swin_t":
        return Baseline(config, SwinTransformer([4, 4], 8, [1, 2], [2, 2], [2, 2], num_classes=3)).eval()
    return create_baseline(name, num_classes=3, img_size=64).eval()


@pytest.mark.parametrize("name", SHAPES)
def test_maps_of_other_libraries(name: str) -> None:
    model = baseline(name)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.features(x)
        assert torch.equal(features.pooled, model.embedding(x))
    assert features.pyramid is not None
    assert [(one.shape[1], one.shape[2]) for one in features.pyramid] == SHAPES[name]
    assert all(one.shape[2] == one.shape[3] for one in features.pyramid)
    assert not [module for module in model.modules() if module._forward_hooks]
    assert len(model.features(x, View()).pyramid or ()) == len(SHAPES[name])  # nothing is left of the first call


def test_a_map_of_torchvision_s_vit_is_its_patches() -> None:
    model = baseline("torchvision:vit_b_32")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens = model.net.encoder(torch.cat([model.net.class_token, model.net._process_input(x)], dim=1))  # type: ignore
        torch.testing.assert_close(the_map(model, x)[0, :, 1, 0], tokens[0, 3])


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:swin_t", "timm:test_resnet"])
def test_gradcam_explains_the_models_of_other_libraries(name: str) -> None:
    model = baseline(name)
    x = torch.randn(2, 3, 64, 64)
    level = the_map(model, x)
    logits = model.get_submodule(model.heads[0])(model.features(x).pooled)
    torch.testing.assert_close(logits, model(x))
    features = model.features(x)
    assert features.pyramid is not None
    (grad,) = torch.autograd.grad(model.get_submodule(model.heads[0])(features.pooled)[:, 2].sum(), features.pyramid[-1])
    expected = (grad.mean(dim=(2, 3), keepdim=True) * level).sum(dim=1).clamp(min=0).detach()
    result = gradcam(model, x, target=2)
    torch.testing.assert_close(result.maps, expected, rtol=1e-4, atol=1e-6)
    assert result.patch == ((8, 8) if name == "torchvision:swin_t" else (32, 32))


def test_gradcam_says_which_heads_it_does_not_follow() -> None:
    model = baseline("torchvision:squeezenet1_1")
    with pytest.raises(ValueError, match=r"^Grad-CAM follows a linear head, and torchvision:squeezenet1_1 has a convolution"):
        gradcam(model, torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"so these have no gradient; use another method$"):
        gradcam(baseline("timm:test_vit"), torch.randn(1, 3, 64, 64))

"""Methods on backbones whose class token attends to the patches in some layers: CaiT and CvT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.explain import METHODS, attention, compare, gradcam, integrated_gradients, pca, similarity
from vitrail.explain.inputs import offers_of, open_scene
from vitrail.explain.methods.attention import attention_sheet
from vitrail.explain.sheets import ExplainConfig, explain
from vitrail.models import Cait, Cvt
from vitrail.models.backbone import Backbone
from vitrail.settings import Preprocessing

SIZE = (32, 48)


def cait() -> Backbone:
    return random(Cait(img_size=SIZE, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3, init_values=0.5))


def cvt() -> Backbone:
    return random(Cvt(img_size=SIZE, embed_dims=(4, 6, 8), depths=(1, 1, 2), num_heads=(1, 3, 2), num_classes=3))


def random(model: Backbone) -> Backbone:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.preprocessing = Preprocessing(img_size=SIZE, in_channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    return model.eval()


def images(height: int = SIZE[0], width: int = SIZE[1]) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


GRIDS = {"Cait": (4, 6), "Cvt": (2, 3)}
both = pytest.mark.parametrize("make", [cait, cvt])


@both
def test_offers(make: Any) -> None:
    assert offers_of(make()) == {"rows", "tokens", "grid", "head"}


@both
def test_attention_is_the_class_token_s(make: Any) -> None:
    model, x = make(), images()
    rows = model.class_attention(x)
    grid = GRIDS[type(model).__name__]
    last = attention(model, x)
    torch.testing.assert_close(last.maps, rows[-1].mean(1)[:, 1:].unflatten(1, grid).detach())
    assert last.labels[0] == "class attention 1, mean of 2 heads"
    maps = attention_sheet(model, x, layers="all", heads="all")
    assert [one.labels[0] for one in maps] == [f"class attention {layer}, head {head}" for layer in (0, 1) for head in (0, 1)]
    torch.testing.assert_close(maps[1].maps, rows[0][:, 1, 1:].unflatten(1, grid).detach())
    sheet = explain(model, [picture()], ExplainConfig(method="attention", layers="all", steps=2))
    assert len(sheet.maps) == 2
    assert sheet.rows[0]["insertion"] is not None


def picture() -> Any:
    return (torch.rand(*SIZE, 3, generator=torch.Generator().manual_seed(2)) * 255).to(torch.uint8).numpy()


@both
def test_what_class_attention_does_not_have(make: Any) -> None:
    model, x = make(), images()
    name = type(model).__name__
    with pytest.raises(ValueError, match=rf"^query 9,9: of {name} only the class token's attention is shown"):
        attention(model, x, query=(9, 9))
    with pytest.raises(ValueError, match=r"^layer 2 does not exist; this model has layers 0 to 1 \(or -2 to -1\)$"):
        attention(model, x, layer=2)
    with pytest.raises(ValueError, match=r'^head 2 does not exist; this model has heads 0 to 1, or "mean"'):
        attention(model, x, heads=2)
    with pytest.raises(ValueError, match=rf"^layer 1: of {name} only the last features are explained; leave the layer out$"):
        gradcam(model, x, layer=1)
    for method in ("rollout", "relevance"):
        line = rf'^method "{method}" needs global attention, which {name} does not have; use attention, gradcam or integrated_'
        with pytest.raises(ValueError, match=line):
            METHODS[method].run(model, x)


@both
def test_gradcam_follows_what_the_class_token_reads(make: Any) -> None:
    model, x = make(), images()
    result = gradcam(model, x, target=[2, 0])
    seen = model.features(x)
    values = seen.read if seen.read is not None else seen.pyramid[-1]
    logits = model.head(seen.pooled)
    (grad,) = torch.autograd.grad(logits[0, 2] + logits[1, 0], values)
    if seen.read is None:
        cam = (values * grad.mean((2, 3), keepdim=True)).sum(1)
    else:
        cam = (values[:, 1:] * grad[:, 1:].mean(1, keepdim=True)).sum(2).unflatten(1, seen.grid)
    torch.testing.assert_close(result.maps, cam.clamp(min=0).detach())
    assert result.maps.abs().sum() > 0


@both
def test_the_other_methods(make: Any) -> None:
    model, x = make(), images()
    result = integrated_gradients(model, x, target=1, steps=64)
    with torch.no_grad():
        rise = model(x)[:, 1] - model(torch.zeros_like(x))[:, 1]
        tokens = model.features(x).tokens
    torch.testing.assert_close(result.maps.sum(dim=(1, 2)), rise, rtol=0.05, atol=0.05)
    cosine = F.cosine_similarity(tokens, tokens[:, :1], dim=2)[:, 1:].unflatten(1, result.maps.shape[1:])
    torch.testing.assert_close(similarity(model, x).maps, cosine)
    assert pca(model, x).maps.shape == result.maps.shape
    compared = compare(model, x, steps=2, draws=1)
    assert list(compared.methods) == ["attention", "gradcam", "integrated_gradients"]


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 49), (34, 50), (47, 64), (230, 225)])
def test_cells_of_cvt_are_its_strides_and_cover_the_image(height: int, width: int) -> None:
    with open_scene(cvt(), images(height, width)) as scene:
        for side, cells, cell in zip((height, width), scene.grid, scene.patch, strict=True):
            assert cell == max(16, -(-side // cells))
            assert cell * cells >= side

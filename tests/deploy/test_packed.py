"""Packed models give the outputs of the models that they are copies of, and leave those as they are."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.deploy.packed import PackedLinear, copy_as, is_linear, pack, packing_is_available
from vitrail.models import Cait, Cvt, ViT, create_model
from vitrail.models.baseline import create_baseline
from vitrail.models.beit import Beit
from vitrail.models.swin import Swin
from vitrail.models.swin_v2 import SwinV2
from vitrail.models.swin_v2_cr import SwinV2Cr

pytestmark = pytest.mark.skipif(not packing_is_available(), reason="this build of torch has no oneDNN")

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
VITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "swiglu": {"mlp": "swiglu"},
    "tanh GELU": {"mlp": "gelu_tanh"},
    "quick GELU": {"mlp": "quick_gelu"},
    "distillation token": {"dist_token": True},
    "convolutional stem": {"stem": "conv"},
    "attention pooling": {"pool": "map", "class_token": False},
    "registers, qk-norm, LayerScale": {"reg_tokens": 2, "qk_norm": True, "init_values": 0.1},
    "norms of patches": {"patch_norm": True},
}


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def packed_copy(model: nn.Module) -> tuple[nn.Module, int]:
    copied = copy_as(model, torch.float32)
    return copied, pack(copied)


def check(model: nn.Module, images: Tensor, *, layers: int) -> nn.Module:
    """The packed copy is equal to rounding; the model still has its own layers, tensors and outputs."""
    before, state = model(images), {name: (id(t), t.clone()) for name, t in model.named_parameters()}
    copied, count = packed_copy(model)
    assert count == layers
    with torch.inference_mode():
        out = copied(images)
    scale = float(before.detach().abs().max())
    torch.testing.assert_close(out, before, atol=1e-5 * max(1.0, scale), rtol=1e-5)
    assert not any(isinstance(layer, PackedLinear) for layer in model.modules())
    assert {name: id(t) for name, t in model.named_parameters()} == {name: place for name, (place, _) in state.items()}
    assert all(torch.equal(t, state[name][1]) for name, t in model.named_parameters())
    assert torch.equal(model(images), before)
    return copied


@pytest.mark.parametrize("form", VITS)
def test_packed_vit_is_the_vit(form: str) -> None:
    model = randomise(ViT(**SMALL | VITS[form]))
    layers = sum(is_linear(layer) for layer in model.modules())
    copied = check(model, torch.randn(3, 3, 16, 16), layers=layers)
    fused = sum(layer.follows != ("none", "") for layer in copied.modules() if isinstance(layer, PackedLinear))
    assert fused == {"swiglu": 0, "quick GELU": 0, "attention pooling": 3}.get(form, 2)


@pytest.mark.parametrize(("family", "layers"), [(Swin, 18), (SwinV2, 26), (SwinV2Cr, 26)])
def test_packed_swin_is_the_swin(family: type[Swin] | type[SwinV2Cr], layers: int) -> None:
    model = randomise(family(img_size=32, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, num_classes=5))
    check(model, torch.randn(2, 3, 32, 32), layers=layers)


def test_packed_beit_is_the_beit() -> None:
    model = randomise(Beit(img_size=32, embed_dim=8, depth=2, num_heads=2, num_classes=5))
    check(model, torch.randn(2, 3, 32, 32), layers=9)


def test_packed_cait_and_cvt_are_themselves() -> None:
    model: nn.Module = randomise(Cait(img_size=32, embed_dim=8, depth=2, num_heads=2, num_classes=5))
    check(model, torch.randn(2, 3, 32, 32), layers=2 * 6 + 2 * 6 + 1)
    model = randomise(Cvt(img_size=32, embed_dims=(4, 6, 8), depths=(1, 1, 1), num_heads=(1, 2, 2), num_classes=5))
    check(model, torch.randn(2, 3, 32, 32), layers=3 * 6 + 1)


@pytest.mark.parametrize("name", ["resnet18", "timm:convnext_atto", "timm:deit3_small_patch16_224", "swin_t"])
def test_packed_models_of_other_libraries(name: str) -> None:
    net: nn.Module = (
        timm.create_model(name.removeprefix("timm:"), num_classes=5)
        if name.startswith("timm:")
        else torchvision.models.get_model(name, num_classes=5)
    ).eval()
    layers = sum(is_linear(layer) for layer in net.modules())
    check(net, torch.randn(1, 3, 224, 224), layers=layers)


def test_a_wrapped_model_is_packed() -> None:
    check(create_baseline("torchvision:resnet18", num_classes=5, img_size=32).eval(), torch.randn(2, 3, 32, 32), layers=1)


@given(
    lead=st.lists(st.integers(0, 4), max_size=3),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    gelu=st.sampled_from([None, "none", "tanh"]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_packed_layers_take_any_leading_shape(
    lead: list[int], sides: tuple[int, int], gelu: str | None, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(*sides, bias=bias)
    packed = PackedLinear(linear, ("none", "") if gelu is None else ("gelu", gelu))
    for rows in (lead, [3, *lead], [1]):  # the second and third have another number of rows than the weight was packed for
        x = torch.randn(*rows, sides[0])
        expected = linear(x) if gelu is None else F.gelu(linear(x), approximate=gelu)
        torch.testing.assert_close(packed(x), expected.detach(), atol=1e-5, rtol=1e-5)


def test_layers_with_a_meaning_of_their_own_stay() -> None:
    class Special(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Squeezing(nn.Module):  # gated: half of fc1's outputs are gates, so its GELU is no part of the product
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(4, 8), nn.GELU(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.fc1(x).chunk(2, dim=-1)
            return self.fc2(self.act(a) * b)

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4), nn.GELU("tanh"), Squeezing(), nn.Linear(4, 4), nn.ReLU())
    copied = check(randomise(model), torch.randn(3, 4), layers=4)
    assert type(copied[0]) is Special
    assert isinstance(copied[2], nn.Identity)  # type: ignore[index]
    assert isinstance(copied[3].act, nn.GELU)  # type: ignore[index]


def test_a_layer_in_two_places_stays_one() -> None:
    shared = nn.Linear(4, 4)
    copied = check(randomise(nn.Sequential(shared, nn.ReLU(), shared)), torch.randn(3, 4), layers=1)
    assert copied[0] is copied[2]  # type: ignore[index]


def test_a_copy_in_bf16_keeps_batch_norms_and_the_original() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).eval()
    copied = copy_as(model, torch.bfloat16)
    assert {name: t.dtype for name, t in copied.state_dict().items()} == {
        name: torch.int64 if name.endswith("tracked") else torch.float32 if name.startswith("1.") else torch.bfloat16
        for name in model.state_dict()
    }
    assert all(t.dtype in (torch.float32, torch.int64) for t in model.state_dict().values())
    images = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(copied(images.bfloat16()).float(), model(images), atol=0.05, rtol=0.05)


def test_positions_of_another_grid_are_kept_apart() -> None:
    model = randomise(create_model("Ti/16", img_size=32, depth=1, num_classes=3))
    images = torch.randn(1, 3, 48, 32)
    with torch.inference_mode():
        expected = model(images)  # fills the cache of resized positions
        torch.testing.assert_close(packed_copy(model)[0](images), expected, atol=1e-4, rtol=1e-5)

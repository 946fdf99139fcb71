"""The linear layer is torch's, whichever route its products take."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.models import create_model, linear
from vitrail.models.linear import Linear

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")), reason="torch has no oneDNN"
)


@pytest.fixture
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(linear, "SMALL", 0)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    taken: list[tuple[int, ...]] = []
    product = linear._product

    def count(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        taken.append(tuple(x.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(linear, "_product", count)
    return taken


def copied(layer: Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.load_state_dict(layer.state_dict())
    return plain


@needs_onednn
@given(
    lead=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    bias=st.booleans(),
    frozen=st.sets(st.sampled_from(["x", "weight", "bias"])),
    strided=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_torch(
    lead: list[int], inputs: int, outputs: int, bias: bool, frozen: set[str], strided: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "mkl_is_slow", lambda: True)
        patch.setattr(linear, "SMALL", 0)
        taken = calls(patch)
        torch.manual_seed(0)
        layer = Linear(inputs, outputs, bias=bias)
        plain = copied(layer)
        x = torch.randn(*lead, inputs) if not strided else torch.randn(*lead[:-1], inputs, lead[-1]).transpose(-1, -2)
        one, two = (x.clone().requires_grad_("x" not in frozen) for _ in range(2))
        for module in (layer, plain):
            module.weight.requires_grad_("weight" not in frozen)
            if module.bias is not None:
                module.bias.requires_grad_("bias" not in frozen)
        ours, theirs = layer(one), plain(two)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert len(taken) == 1
        assert ours.requires_grad == theirs.requires_grad
        if ours.requires_grad:
            weight = torch.randn_like(ours)
            (ours * weight).sum().backward()
            (theirs * weight).sum().backward()
            for left, right in [(one, two), *zip(layer.parameters(), plain.parameters(), strict=True)]:
                assert (left.grad is None) == (right.grad is None)
                if left.grad is not None:
                    torch.testing.assert_close(left.grad, right.grad, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_the_route_is_for_large_fp32_products_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = calls(monkeypatch)
    layer, x = Linear(64, 64), torch.randn(64, 64)
    monkeypatch.setattr(linear, "SMALL", 64**3)
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)
    layer(x)
    assert len(taken) == 1
    layer(x[:63])  # too small
    layer.double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        layer.float()(x)
    layer.to("meta")(x.to("meta"))
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: False)
    Linear(64, 64)(x)
    assert len(taken) == 1


@pytest.mark.usefixtures("slow_mkl")
@needs_onednn
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("Ti/8", 32),
        ("swin_t", 32),
        ("swinv2_t", 32),
        ("swinv2_cr_t", 32),
        ("beit_b16", 32),
        ("cait_xxs24", 64),
        ("cvt_13", 32),
        ("R26+S/32", 32),
        ("dinov3_s16", 32),
        ("sam_b16", 32),
    ],
)
def test_models_take_it(name: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = create_model(name, img_size=side, num_classes=4).eval()
    images = torch.randn(2, 3, side, side)
    taken = calls(monkeypatch)
    actual = model(images)
    assert taken
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: False)
    torch.testing.assert_close(actual, model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("slow_mkl")
@needs_onednn
def test_a_gradient_can_be_differentiated_again() -> None:
    """As for a penalty on gradients."""
    torch.manual_seed(0)
    layer = Linear(5, 3)
    plain, results = copied(layer), []
    for module in (layer, plain):
        x = torch.ones(4, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(module(x).tanh().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        results.append([x.grad, *(p.grad for p in module.parameters())])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)

"""Attention with a backward pass of its own has the values and gradients of autograd's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.models import create_model
from vitrail.models import plain_attention as plain_attention_module
from vitrail.models import vit as vit_module
from vitrail.models.attention import attention_weights
from vitrail.models.plain_attention import plain_attention
from vitrail.models.vit import ViT


def by_autograd(qkv: Tensor, num_heads: int) -> Tensor:
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return (attention_weights(q, k, None) @ v).transpose(1, 2).flatten(2)


def run(attention: Callable[[Tensor, int], Tensor], qkv: Tensor, heads: int, gradient: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.clone().requires_grad_()
    out = attention(qkv, heads)
    out.backward(gradient)
    assert qkv.grad is not None
    return out.detach(), qkv.grad


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 20),
    heads=st.integers(1, 4),
    width=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    strided=st.booleans(),
)
def test_values_and_gradients_are_those_of_autograd(
    batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype, strided: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3 * heads * width, generator=g).to(dtype)
    gradient = torch.randn(batch, tokens, heads * width, generator=g).to(dtype)
    if strided:
        gradient = gradient.transpose(0, 1).contiguous().transpose(0, 1)
    ours, theirs = run(plain_attention, qkv, heads, gradient), run(by_autograd, qkv, heads, gradient)
    within = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-10}[dtype]
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=within, rtol=within)


@given(batch=st.integers(1, 5), tokens=st.integers(1, 9), heads=st.integers(1, 3), part=st.integers(1, 300))
def test_parts_of_a_batch_without_gradients(batch: int, tokens: int, heads: int, part: int) -> None:
    qkv = torch.randn(batch, tokens, 3 * heads * 4, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(plain_attention_module, "PART", part)
        torch.testing.assert_close(plain_attention(qkv, heads), by_autograd(qkv, heads))


def test_gradient_is_that_of_the_function() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3 * 2 * 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: plain_attention(x, 2), (qkv,))


@given(images=st.integers(1, 3), windows=st.integers(1, 3), heads=st.integers(1, 3), shared=st.booleans())
def test_a_bias_of_every_window_and_its_gradient(images: int, windows: int, heads: int, shared: bool) -> None:
    g = torch.Generator().manual_seed(0)
    qkv = torch.randn(images * windows, 4, 3 * heads * 2, generator=g, dtype=torch.float64)
    bias = torch.randn(1 if shared else windows, heads, 4, 4, generator=g, dtype=torch.float64)
    masked = bias.clone()
    masked[-1, :, 0, 1:] = float("-inf")  # a position that sees itself alone

    def expected(qkv: Tensor, bias: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(0, (images, windows)).unflatten(3, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
        weights = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)
        return (weights @ v).transpose(2, 3).flatten(3).flatten(0, 1)

    torch.testing.assert_close(plain_attention(qkv, heads, masked), expected(qkv, masked))
    inputs = qkv.requires_grad_(), bias.requires_grad_()
    gradients = [
        torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (lambda x, b: plain_attention(x, heads, b), expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("fields", "training", "taken"),
    [
        ({}, True, 2),
        ({}, False, 0),
        ({"qk_norm": True}, True, 0),
        ({"attn_drop_rate": 0.1}, True, 0),
        ({"head_dim": 8}, True, 2),
    ],
)
@pytest.mark.parametrize("routed", [True, False])
def test_which_passes_take_it(
    fields: dict[str, object], training: bool, taken: int, routed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in bf16, and in fp32 where oneDNN multiplies; with gradients in training alone."""
    monkeypatch.setattr(plain_attention_module, "routes_products", lambda: routed)
    calls: list[int] = []
    monkeypatch.setattr(vit_module, "plain_attention", lambda qkv, heads: (calls.append(heads), plain_attention(qkv, heads))[1])
    torch.manual_seed(0)
    model = create_model("Ti/8", img_size=32, num_classes=4, depth=2, **fields).train(training)
    assert isinstance(model, ViT)
    images = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        model(images).sum().backward()
    assert len(calls) == taken
    calls.clear()
    model(images).sum().backward()  # fp32
    assert len(calls) == (taken if routed else 0)
    calls.clear()
    without_gradients = 0 if "qk_norm" in fields or (training and "attn_drop_rate" in fields) else 2
    with torch.no_grad():
        model(images)
        assert len(calls) == (without_gradients if routed else 0)
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            model(images)
    assert len(calls) == without_gradients


def test_logits_and_gradients_of_a_model_are_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = create_model("Ti/8", img_size=64, num_classes=4, depth=2).train()
    images, results = torch.randn(4, 3, 64, 64), []
    for attention in (plain_attention, by_autograd):
        monkeypatch.setattr(vit_module, "plain_attention", attention)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        logits.float().sum().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-3)

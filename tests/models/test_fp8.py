"""Linear layers in fp8: products, gradients, what stays in bf16, and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.models import create_model
from vitrail.models.device import autocast_dtype, require_fp8
from vitrail.models.fp8 import GRADIENTS, VALUES, Fp8Linear, to_fp8, train_in_fp8, turned
from vitrail.models.linear import Linear

CPU = torch.device("cpu")


def plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that fp8 keeps of a tensor."""
    values, factor = to_fp8(x, dtype)
    return values.float() * factor


def layer(inputs: int, outputs: int, *, bias: bool = True) -> Linear:
    torch.manual_seed(0)
    made = Linear(inputs, outputs, bias=bias)
    made.__class__ = Fp8Linear
    return made.train()


@given(
    rows=st.integers(1, 40),
    inputs=st.sampled_from([16, 48]),
    outputs=st.sampled_from([16, 32]),
    bias=st.booleans(),
    scale=st.floats(-6, 6),
)
def test_products_are_those_of_the_rounded_tensors(rows: int, inputs: int, outputs: int, bias: bool, scale: float) -> None:
    """Output and the three gradients, to bf16's rounding; for any number of rows and numbers of any size."""
    linear = layer(inputs, outputs, bias=bias)
    x = (10**scale * torch.randn(1, rows, inputs)).requires_grad_()
    gradient = (10**-scale * torch.randn(1, rows, outputs)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = linear(x)
    out.backward(gradient)
    x8, w8, g8 = plain(x.detach()[0], VALUES), plain(linear.weight.detach(), VALUES), plain(gradient[0], GRADIENTS)
    wanted = x8 @ w8.T + (linear.bias if linear.bias is not None else 0)
    assert out.dtype == torch.bfloat16
    assert out.shape == (1, rows, outputs)
    assert x.grad is not None
    assert linear.weight.grad is not None
    for got, want in ((out[0], wanted), (x.grad[0], g8 @ w8), (linear.weight.grad, g8.T @ x8)):
        assert (got.float() - want).norm() <= 1e-2 * want.norm()
    if linear.bias is not None:
        assert linear.bias.grad is not None
        torch.testing.assert_close(linear.bias.grad, gradient[0].float().sum(0))


@given(rows=st.integers(1, 20), columns=st.integers(1, 40), power=st.integers(-20, 20))
def test_rounding(rows: int, columns: int, power: int) -> None:
    """The largest number is kept, to the format's 3 and 2 bits all others near it, and zeros are zeros."""
    x = 2.0**power * torch.randn(rows, columns)
    for dtype, bits in ((VALUES, 3), (GRADIENTS, 2)):
        kept = plain(x, dtype)
        near = x.abs() > x.abs().amax() / 64
        assert bool(((kept - x).abs()[near] <= x.abs()[near] * 2.0 ** -(bits + 1) * 1.001).all())
        torch.testing.assert_close(kept.abs().amax(), x.abs().amax())
    assert torch.equal(plain(torch.zeros(2, 3), VALUES), torch.zeros(2, 3))
    values, _ = to_fp8(x, VALUES)
    assert torch.equal(turned(values).float()[:, :rows], values.float().T)
    assert turned(values).shape[1] % 16 == 0


def test_broken_numbers_stay_broken() -> None:
    """So that a loss that is not finite is noticed."""
    for value in (float("nan"), float("inf")):
        assert plain(torch.tensor([1.0, value]), VALUES).isnan().any()


def test_which_layers() -> None:
    """Those of the blocks with sides that fit: neither embedding nor head; parameters keep their names and values."""
    model = create_model("Ti/16", img_size=32, num_classes=16, depth=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert train_in_fp8(model) == 8
    assert {name for name, module in model.named_modules() if type(module) is Fp8Linear} == {
        f"blocks.{block}.{name}" for block in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_evaluation_and_plain_precision_are_untouched() -> None:
    exact, fp8 = (create_model("Ti/16", img_size=32, num_classes=16, depth=2) for _ in range(2))
    fp8.load_state_dict(exact.state_dict())
    train_in_fp8(fp8)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(fp8.train()(images), exact.train()(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fp8.eval()(images), exact.eval()(images))
        logits, wanted = fp8.train()(images), exact.train()(images)
    assert 1e-3 < (logits - wanted).norm().item() / wanted.norm().item() < 0.2


def test_a_model_without_such_layers() -> None:
    with pytest.raises(ValueError, match=r'"fp8" is for linear layers .* this model has none; use "bf16"'):
        train_in_fp8(create_model("Ti/16", img_size=32, num_classes=16, embed_dim=24, depth=1, num_heads=1, mlp_ratio=3.0))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("fp8", CPU) == torch.bfloat16
    with pytest.raises(ValueError, match='"fp8" needs a CUDA device, and this is mps'):
        require_fp8(torch.device("mps"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r'8\.9 or later, and Some GPU has 8\.0; use "bf16"'):
        require_fp8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    require_fp8(torch.device("cuda"))

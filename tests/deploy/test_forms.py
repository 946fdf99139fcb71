"""Forms of a model take any number of images, and leave the model as it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.deploy import forms
from vitrail.models import ViT


@pytest.fixture(scope="module")
def model() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=16, patch_size=8, num_classes=5, embed_dim=16, depth=1, num_heads=2).eval()


@given(batch_size=st.integers(1, 5), sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4))
@hypothesis_settings(max_examples=20)
def test_compiled_is_compiled_for_one_number_of_images(model: ViT, batch_size: int, sizes: list[int]) -> None:
    """Without compiling: batches up to the usual number are filled up to it, and the answers are those of the images."""
    seen: list[int] = []

    def not_compiled(copied: nn.Module) -> nn.Module:
        copied.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        return copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", not_compiled)
        form = forms.compiled(model, batch_size)
    for size in sizes:
        images = torch.randn(size, 3, 16, 16)
        with torch.inference_mode():
            out, expected = form(images), model(images)
        assert (out.shape, out.dtype) == (expected.shape, torch.float32)
        torch.testing.assert_close(out, expected, atol=0.05, rtol=0)
    assert seen == [max(size, batch_size) for size in sizes]


@pytest.mark.parametrize("name", ["fp32", "packed", "bf16"])
def test_a_form_takes_any_number_and_size_of_images(model: ViT, name: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if name == "bf16" and (reason := forms.needs_bf16(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    form = getattr(forms, name)(model, 4)
    atol = 0.05 if name == "bf16" else 1e-5
    for shape in ((4, 3, 16, 16), (1, 3, 16, 16), (6, 3, 16, 24)):
        images = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(form(images), model(images), atol=atol, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(value.is_inference() for value in model.state_dict().values())


def test_needs_name_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu, mps = map(torch.device, ("cuda", "cpu", "mps"))
    assert forms.needs_packing(cuda) == "its products are for a CPU, and this is cuda"
    assert forms.needs_bf16(mps) == "it is for a CPU or a CUDA device, and this is mps"
    monkeypatch.setattr(forms, "bf16_is_faster", lambda device: False)
    monkeypatch.setattr(forms, "packing_is_available", lambda: False)
    assert forms.needs_bf16(cpu) == "bf16 is not faster than fp32 on this cpu"
    assert forms.needs_packing(cpu) == "this build of torch has no oneDNN"
    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: None)
    assert forms.needs_compiling(cuda) == "it needs the package triton"
    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: name)
    assert forms.needs_compiling(cuda) == "bf16 is not faster than fp32 on this cuda"


def test_bf16_without_onednn_is_bf16(model: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "packing_is_available", lambda: False)
    images = torch.randn(2, 3, 16, 16)
    out: Tensor = forms.bf16(model, 2)(images)
    torch.testing.assert_close(out, model(images), atol=0.05, rtol=0)

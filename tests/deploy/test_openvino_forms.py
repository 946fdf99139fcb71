"""OpenVINO's backends compute the model's logits for any number of images, and are asked for by name alone."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import pytest
import torch

from vitrail.deploy import forms
from vitrail.deploy.backends import BACKENDS, candidates, require_available
from vitrail.models import ViT
from vitrail.models import machine as machine_module
from vitrail.models.merging import MergedViT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=16, patch_size=4, num_classes=5, embed_dim=16, depth=2, num_heads=2, stem="conv").eval()


@pytest.fixture(autouse=True)
def in_eval() -> Iterator[None]:
    with torch.inference_mode():  # as in `Predictor.logits`
        yield


@pytest.mark.slow
@pytest.mark.parametrize("merge", [0, 2])
@pytest.mark.parametrize("name", ["openvino", "openvino-bf16"])
def test_the_logits_are_the_models_for_any_number_of_images(model: ViT, name: str, merge: int) -> None:
    row = BACKENDS[name]
    if reason := row.unavailable(CPU):
        pytest.skip(reason)
    own = MergedViT(model, merge).eval() if merge else model
    form = row.build(own, batch_size=4)
    for count in (4, 1, 6, 4):
        images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        expected = own(images)
        torch.testing.assert_close(form(images), expected, atol=row.tolerance, rtol=0)


def test_auto_does_not_take_them() -> None:
    assert not {"openvino", "openvino-bf16"} & set(candidates(CPU))


def test_what_they_need_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forms.needs_openvino(torch.device("cuda")) == "it is for a CPU, and this is cuda"
    monkeypatch.setattr(machine_module.importlib.util, "find_spec", lambda name: None)
    expected = r'backend "openvino" is not available: openvino is not installed \(pip install .vitrail\[export\].\); use auto, '
    with pytest.raises(ValueError, match=expected):
        require_available("openvino", CPU)
    monkeypatch.setattr(machine_module.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(forms, "bf16_is_faster", lambda device: False)
    assert forms.needs_openvino_bf16(CPU) == "bf16 is not faster than fp32 on this cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="the structure is Linux's")
def test_signals_keep_their_stack(model: ViT) -> None:
    """OpenVINO leaves a stack for signals with the thread that compiles: when it is freed, Ctrl-C would crash the process."""
    if reason := BACKENDS["openvino"].unavailable(CPU):
        pytest.skip(reason)
    before = signal_stack()
    form = BACKENDS["openvino"].build(model, batch_size=2)
    form(torch.randn(2, 3, 16, 16))
    assert signal_stack() == before


def signal_stack() -> tuple[int | None, int, int]:
    """Address, flags and size of this thread's stack for signals."""

    class Stack(ctypes.Structure):
        _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address, stack.flags, stack.size

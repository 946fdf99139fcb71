from __future__ import annotations

import pytest
import torch

from vitrail.models import device


def test_a_device_by_name() -> None:
    assert device.pick_device("cpu") == torch.device("cpu")
    assert device.pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["warp", "cuda:99", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=rf'^device "{name}" is not on this machine; use "auto" or "cpu"$'):
        device.pick_device(name)


@pytest.mark.parametrize("faster", [False, True])
def test_precision_is_what_was_said_and_auto_measures(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "bf16_is_faster", lambda _: faster)
    assert device.autocast_dtype("fp32", cpu) is None
    assert device.autocast_dtype("bf16", cpu) == torch.bfloat16
    assert device.autocast_dtype("auto", cpu) == (torch.bfloat16 if faster else None)


@pytest.mark.parametrize("kind", ["cpu", "mps", "cuda"])
def test_fp16_is_for_cuda(kind: str) -> None:
    if kind == "cuda":
        assert device.autocast_dtype("fp16", torch.device("cuda")) == torch.float16
        return
    with pytest.raises(
        ValueError, match=rf'^train.precision "fp16" needs a CUDA device, and this is {kind}; use "bf16" or "fp32"$'
    ):
        device.autocast_dtype("fp16", torch.device(kind))


def test_autocast_in_a_type_or_not_at_all() -> None:
    cpu, a = torch.device("cpu"), torch.ones(2, 2)
    for dtype in (None, torch.bfloat16):
        with device.autocast(cpu, dtype):
            assert (a @ a).dtype == (dtype or torch.float32)


def test_the_measurement_says_yes_or_no() -> None:
    assert device.bf16_is_faster(torch.device("cpu")) in (False, True)
    assert device.bf16_is_faster(torch.device("meta")) is False


@pytest.mark.parametrize(
    ("of_bf16", "faster", "products"),
    [
        ([0.7] * 5, True, 10),
        ([9.0, 0.7, 0.7, 0.7, 0.7], True, 10),  # the first call sets the kernel up
        ([1.2] * 5, False, 10),
        ([40.0] * 5, False, 4),  # emulated: no time is lost with more of it
    ],
)
def test_the_faster_product_decides(monkeypatch: pytest.MonkeyPatch, of_bf16: list[float], faster: bool, products: int) -> None:
    times, count, threads = iter(of_bf16), [], torch.get_num_threads()

    def product_s(a: torch.Tensor, b: torch.Tensor) -> float:
        count.append(torch.get_num_threads())
        return 1.0 if a.dtype == torch.float32 else next(times)

    monkeypatch.setattr(device, "product_s", product_s)
    device.bf16_is_faster.cache_clear()
    try:
        assert device.bf16_is_faster(torch.device("cpu")) is faster
    finally:
        device.bf16_is_faster.cache_clear()
    assert (len(count), set(count), torch.get_num_threads()) == (products, {1}, threads)


def test_freed_memory_is_kept_on_linux_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.sys, "platform", "darwin")
    assert device.keep_freed_memory() is False
    assert device.keep_freed_memory(False) is False

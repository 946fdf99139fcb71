"""Forms of a model for inference, one function for each backend, and what each needs of a device."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.deploy.packed import copy_as, pack, packing_is_available
from vitrail.models.device import bf16_is_faster
from vitrail.models.machine import missing

Forward = Callable[[Tensor], Tensor]
"""Normalised fp32 images (B, C, H, W) to fp32 logits (B, K)."""


def fp32(model: nn.Module, batch_size: int) -> Forward:
    """Return the model as it is."""

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits.float()

    return forward


def packed(model: nn.Module, batch_size: int) -> Forward:
    """Return a copy whose linear layers are packed; the other tensors are shared."""
    model = copy_as(model, torch.float32)
    pack(model)
    return fp32(model, batch_size)


def bf16(model: nn.Module, batch_size: int) -> Forward:
    """Return a copy in bf16, on a CPU with packed linear layers."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    model = copy_as(model, torch.bfloat16)
    if on_cpu and packing_is_available():
        pack(model)
    return _in_bf16(model)


def compiled(model: nn.Module, batch_size: int) -> Forward:
    """Return a copy in bf16 that is compiled at its first call, for one number of images: smaller batches are filled up."""
    forward = _in_bf16(torch.compile(copy_as(model, torch.bfloat16)))

    def filled(images: Tensor) -> Tensor:
        missing = max(0, batch_size - len(images))
        return forward(F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing)))[: len(images)]

    return filled


def _in_bf16(model: Callable[[Tensor], Tensor]) -> Forward:
    def forward(images: Tensor) -> Tensor:
        return model(images.to(torch.bfloat16)).float()

    return forward


def needs_nothing(device: torch.device) -> None:
    """Accept every device."""


def needs_packing(device: torch.device) -> str | None:
    """Return the reason why `packed` can't be used, or None."""
    if device.type != "cpu":
        return f"its products are for a CPU, and this is {device.type}"
    return None if packing_is_available() else "this build of torch has no oneDNN"


def needs_bf16(device: torch.device) -> str | None:
    """Return the reason why `bf16` can't be used, or None."""
    if device.type not in ("cpu", "cuda"):
        return f"it is for a CPU or a CUDA device, and this is {device.type}"
    return None if bf16_is_faster(device) else f"bf16 is not faster than fp32 on this {device.type}"


def needs_compiling(device: torch.device) -> str | None:
    """Return the reason why `compiled` can't be used, or None."""
    if device.type != "cuda":
        return f"it is for a CUDA device, and this is {device.type}"
    return "it needs the package triton" if importlib.util.find_spec("triton") is None else needs_bf16(device)


def needs_openvino(device: torch.device) -> str | None:
    """Return the reason why `openvino_forms.fp32` can't be used, or None."""
    if device.type != "cpu":
        return f"it is for a CPU, and this is {device.type}"
    reason = missing(("openvino",))
    return None if reason is None else f"{reason} (pip install 'vitrail[export]')"


def needs_openvino_bf16(device: torch.device) -> str | None:
    """Return the reason why `openvino_forms.bf16` can't be used, or None."""
    return needs_openvino(device) or needs_bf16(device)

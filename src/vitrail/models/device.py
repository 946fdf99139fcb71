"""Which device, and in which number type it is fastest."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import time
from typing import Literal

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one. Raises ValueError for one that is not there."""
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device "{name}" is not on this machine; use "auto" or "cpu"') from error
    return device


def autocast_dtype(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> torch.dtype | None:
    """bf16 or fp16 for mixed precision, or None for fp32 throughout. Raises ValueError for fp16 without CUDA."""
    if precision == "auto":
        precision = "bf16" if bf16_is_faster(device) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f'train.precision "fp16" needs a CUDA device, and this is {device.type}; use "bf16" or "fp32"')
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Mixed precision in `dtype`, or nothing at all."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@functools.cache
def bf16_is_faster(device: torch.device) -> bool:
    """Whether a product of a ViT's size takes less time in bf16 than in fp32, measured here and now (about 0.1 s)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1576, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)
        best = float("inf")
        for _ in range(4):  # the first call sets the kernel up
            start = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - start)
        times[dtype] = best
    return times[torch.bfloat16] < 0.8 * times[torch.float32]


def keep_freed_memory(wanted: bool = True) -> bool:
    """Asks glibc to keep large buffers when they are freed, for a training step wants the same ones again.

    Else every large tensor is fetched from the kernel, page by page, at every step. What is kept has gaps, though: with
    checkpointing they can be larger than what is in use, so not `wanted` asks for the contrary. Says whether it was granted;
    other C libraries and systems go on as they were.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # malloc.h
    if wanted:
        return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))
    return all([mallopt(m_mmap_max, 65536), mallopt(m_mmap_threshold, 2**20), mallopt(m_trim_threshold, 2**20)])

"""Device selection and mixed precision."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Processor(NamedTuple):
    """Processor of this machine."""

    name: str
    vendor: str
    """Such as "AuthenticAMD"; elsewhere than on Linux a text that contains it."""
    flags: frozenset[str]
    """Instruction sets by Linux's names; empty elsewhere."""


@functools.cache
def processor() -> Processor:
    """Return name, vendor and flags of the processor."""
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8", errors="replace") if listing.exists() else ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name = platform.processor() or platform.machine()
    return Processor(facts.get("model name", name), facts.get("vendor_id", name), frozenset(facts.get("flags", "").split()))


def pick_device(name: str) -> torch.device:
    """Return the device of this name; "auto" takes a GPU if there is one. Raises ValueError for an unavailable device."""
    if name == "auto":
        backend = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(backend)
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device "{name}" is not on this machine; use "auto" or "cpu"') from error
    return device


def autocast_dtype(precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"], device: torch.device) -> torch.dtype | None:
    """Return bf16 or fp16 for mixed precision, or None for fp32. fp8 is bf16 but for some products.

    Raises ValueError for fp16 without CUDA, and for fp8 on a GPU that has no such products.
    """
    if precision == "auto":
        precision = "bf16" if bf16_is_faster(device) else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f'train.precision "fp16" needs a CUDA device, and this is {device.type}; use "bf16" or "fp32"')
    if precision == "fp8":
        require_fp8(device)
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}[precision]


def require_fp8(device: torch.device) -> None:
    """Raise ValueError for a device without products in fp8. CPUs have them, but emulated."""
    if device.type == "cpu":
        return
    if device.type != "cuda":
        raise ValueError(f'train.precision "fp8" needs a CUDA device, and this is {device.type}; use "auto"')
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        has = f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        raise ValueError(f'train.precision "fp8" needs a GPU of compute capability 8.9 or later, and {has}; use "bf16"')


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Return a context of mixed precision in `dtype`; None: a context without effect."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products of fp32 are computed in fp32, inside of `autocast` too."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@functools.cache
def bf16_is_faster(device: torch.device) -> bool:
    """Measure whether a matrix product of a ViT's size is faster in bf16 than in fp32 on this device (0.01 to 0.2 s).

    On a CPU it is the time that one thread computes, which a busy machine does not change: the answer decides on the precision
    of a run, and the same command has to get the same answer each time (dev/LOG.md).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    fp32, bf16 = (
        (torch.ones(197, 384, dtype=dtype), torch.ones(384, 1536, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        of_fp32 = of_bf16 = float("inf")
        for each in range(5):
            of_fp32, of_bf16 = min(of_fp32, product_s(*fp32)), min(of_bf16, product_s(*bf16))
            if each and of_bf16 > 4 * of_fp32:  # emulated, 40 times slower; the first calls set the kernels up
                break
    finally:
        torch.set_num_threads(threads)
    return of_bf16 < 0.8 * of_fp32


def product_s(a: Tensor, b: Tensor) -> float:
    """Return the seconds that this thread computes a matrix product."""
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time  # Windows counts it in steps of 16 ms
    start = clock()
    a @ b
    return clock() - start


def keep_freed_memory(keep: bool = True) -> bool:
    """Ask glibc to keep freed large buffers for reuse by the next step or batch. Return whether the request was accepted.

    Otherwise every large tensor is fetched from the kernel, page by page, every time. Kept buffers have gaps, though: with
    checkpointing these can be larger than the memory in use, so `keep=False` asks for the opposite. Other C libraries and
    systems are unaffected.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # malloc.h
    if keep:
        return bool(mallopt(m_mmap_max, 0)) and bool(mallopt(m_trim_threshold, 2**31 - 1))
    return all([mallopt(m_mmap_max, 65536), mallopt(m_mmap_threshold, 2**20), mallopt(m_trim_threshold, 2**20)])

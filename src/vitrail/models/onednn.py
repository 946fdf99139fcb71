"""Products in fp32 by oneDNN, on processors that MKL slows down."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from vitrail.models.device import processor

_NOTHING = nullcontext()
_lock = threading.Lock()
_inside = 0
_before = ""


@functools.cache
def mkl_is_slow() -> bool:
    """Return True for a processor that is not Intel's, and a torch with MKL and oneDNN."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and "GenuineIntel" not in processor().vendor


def fast_products(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which products of tensors like x are computed by oneDNN, where that is faster and as exact."""
    return onednn_products() if x.dtype == torch.float32 and x.device.type == "cpu" and routes_products() else _NOTHING


@functools.cache
def routes_products() -> bool:
    """Return True where `onednn_products` takes another route than MKL, and the route is one of fp32.

    Torch sends products to oneDNN only along with the permission to round to bf16, of which processors with AMX make use. So
    products in the layouts of attention and of a weight's gradient are compared with exact ones. Nothing is timed, so that a
    resumed run repeats its numbers.
    """
    with ThreadPoolExecutor(1) as thread:  # autocast, inference mode and whatever else a pass runs in are of its thread
        return thread.submit(compare_routes).result()


def compare_routes() -> bool:
    """See `routes_products`."""
    if not (mkl_is_slow() and hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")):
        return False
    draws, routed = torch.Generator().manual_seed(0), False
    a, b = torch.randn(2, 3, 192, 384, dtype=torch.float32, generator=draws)
    for left, right in ((a, b.mT), (b.mT, a), (a[0], b[0].t()), (b[0].t(), a[0])):
        plain, exact, other = left @ right, left.double() @ right.double(), product(left, right)
        if (other - exact).norm() > 4 * (plain - exact).norm():
            return False
        routed |= not torch.equal(other, plain)
    return routed


def product(left: Tensor, right: Tensor) -> Tensor:
    """Compute a product by oneDNN, if torch sends it there."""
    with onednn_products():
        return left @ right


@contextmanager
def onednn_products() -> Iterator[None]:
    """Context in which torch sends products in fp32 to oneDNN.

    The switch is the process's: the first thread inside sets it, and the last one outside puts it back.
    """
    global _inside, _before
    switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _lock:
        if not _inside:
            _before, switch.fp32_precision = switch.fp32_precision, "bf16"
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                switch.fp32_precision = _before

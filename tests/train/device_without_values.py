"""A device whose tensors have shapes and no values, so that whatever waits for a value raises: what a GPU would stop for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")


class Waits(AssertionError):
    """An operation waited for the device."""


class _Copies(TorchDispatchMode):
    """Mode that raises Waits for a copy to the device that is not `non_blocking`, and for operands on two devices."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == DEVICE and args[0].device != DEVICE:
            if not kwargs.get("non_blocking"):
                raise Waits(f"a blocking copy of {tuple(args[0].shape)} to the device")
        elif len(devices) > 1:
            raise Waits(f"{func} takes tensors of {' and '.join(map(str, devices))}")
        return func(*args, **kwargs)


class _Constants(TorchFunctionMode):
    """Mode that raises Waits for a tensor of Python numbers on the device, which is a blocking copy on a GPU."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            raise Waits(f"torch.tensor({args[0]}) on the device")
        return func(*args, **kwargs)


@contextmanager
def never_waits() -> Iterator[None]:
    """Context that raises Waits where an operation would wait for `DEVICE`.

    What depends on values (`item`, `nonzero`, a mask as an index, a copy to the CPU) raises by itself, for there are none.
    """
    with _Copies(), _Constants():
        yield

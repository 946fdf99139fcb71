"""Tensors with a shape and no data, on which a model runs at once and without memory: what a pass costs is counted on them.

A `Shape` is a tensor of a CPU for torch, so autocast and the choice of an attention kernel are those of a CPU, and autograd
keeps what it would keep. Results are those of torch's meta device, or of a row of `models.shape_rules`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail.models.shape_rules import FLOPS, RESULTS

_CPU, _META = torch.device("cpu"), torch.device("meta")
_CAST = torch.ops.aten._to_copy.default


class Ledger:
    """Bytes that are alive, and floating-point operations."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a new pass: nothing counts that is there already."""
        self.alive, self.casts, self.flops = 0, 0, 0
        """Bytes alive; of those, copies of weights in another type; operations."""
        self.peaks: dict[str, int] = {}
        """Greatest number of bytes alive, each with an offset of its own."""
        self.offsets: dict[str, int] = {}
        """Bytes to add to those alive for each peak: what is not there in this pass, and would be in another one."""

    def add(self, size: int) -> None:
        """Count new bytes; update the peaks."""
        self.alive += size
        for name, offset in self.offsets.items():
            if self.alive + offset > self.peaks[name]:
                self.peaks[name] = self.alive + offset

    def watch(self, **offsets: int) -> None:
        """Set offsets of peaks, from now on."""
        self.offsets |= offsets
        for name, offset in offsets.items():
            self.peaks[name] = max(self.peaks.get(name, 0), self.alive + offset)


class _Storage:
    """Memory that one tensor and its views share: it counts as long as one of them exists."""

    __slots__ = ("ledger", "size", "weight")

    def __init__(self, ledger: Ledger, size: int, *, weight: bool = False) -> None:
        self.ledger, self.size, self.weight = ledger, size, weight
        ledger.casts += size * weight
        ledger.add(size)

    def __del__(self) -> None:
        self.ledger.alive -= self.size
        self.ledger.casts -= self.size * self.weight


class Shape(Tensor):
    """A tensor of a CPU without data."""

    meta: Tensor
    """The same tensor on the meta device."""
    storage_of: _Storage

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, storage: _Storage) -> Shape:
        layout: Any = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        self: Shape = Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device=_CPU)
        self.meta, self.storage_of = inner, storage
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} on a tensor without data, outside of `Shapes`")


class FusedShape(Shape):
    """A tensor whose device our own code takes for another one than a CPU, so that attention in bf16 stays fused."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The meta device."""
        return _META


class Shapes(TorchDispatchMode):
    """Context in which every tensor that an operation returns is a `Shape`, counted in `ledger`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what torch wraps this class with otherwise loads its compiler

    def __init__(self, ledger: Ledger, *, fused: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger, self.kind = ledger, FusedShape if fused else Shape

    def tensor(self, inner: Tensor, *, weight: bool = False) -> Tensor:
        """Return a tensor in the shape of one on the meta device."""
        return self.kind(inner, _Storage(self.ledger, inner.untyped_storage().nbytes(), weight=weight))

    def take(self, model: nn.Module) -> None:
        """Replace the parameters and buffers of a model on the meta device; they count as alive."""
        shapes: dict[int, Tensor] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in shapes:
                        shapes[id(parameter)] = self.tensor(parameter.data, weight=True).requires_grad_(parameter.requires_grad)
                        shapes[id(parameter)]._is_param = True  # what makes it an nn.Parameter
                    module._parameters[name] = shapes[id(parameter)]  # type: ignore[assignment]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        facts = _facts(func)
        if facts.writes:
            return facts.written(args, kwargs or {})
        inputs = [_inner(arg) for arg in args]
        options = {name: _inner(arg) for name, arg in kwargs.items()} if kwargs else {}
        if facts.takes_device:
            options["device"] = _META
        if facts.flops is not None:
            self.ledger.flops += facts.flops(*inputs)
        result = facts.result(*inputs, **options)
        storage = None if facts.new or not isinstance(args[0], Shape) else args[0].storage_of
        if isinstance(result, Tensor):
            if storage is None or not (facts.view or _is_view(result, inputs[0])):
                return self.tensor(result, weight=storage is not None and storage.weight and func is _CAST)
            return self.kind(result, storage)
        if isinstance(result, list | tuple):
            wrap = self.tensor if storage is None or not facts.view else functools.partial(self.kind, storage=storage)
            return type(result)([wrap(one) if isinstance(one, Tensor) else one for one in result])
        return result


def _inner(value: Any) -> Any:
    """Return an argument on the meta device."""
    if isinstance(value, Shape):
        return value.meta
    if isinstance(value, list | tuple):
        return type(value)([_inner(one) for one in value])
    return value.to(_META) if isinstance(value, Tensor) else value


def _is_view(result: Tensor, x: Tensor) -> bool:
    return result.untyped_storage()._cdata == x.untyped_storage()._cdata


class _Facts:
    """Facts of an operation."""

    def __init__(self, func: Any) -> None:
        arguments = func._schema.arguments
        self.result, self.flops = RESULTS.get(func, func), FLOPS.get(func)
        self.takes_device = any(one.name == "device" for one in arguments)
        self.writes = [(place, one.name) for place, one in enumerate(arguments) if one.alias_info and one.alias_info.is_write]
        self.returns = len(func._schema.returns)
        self.new = func in RESULTS or not arguments
        self.view = any(one.alias_info for one in func._schema.returns)  # of its first argument

    def written(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return what an operation writes into: nothing is computed, and nothing allocated."""
        written = [args[place] if place < len(args) else kwargs.get(name) for place, name in self.writes]
        return None if not self.returns else written[0] if self.returns == 1 else tuple(written[: self.returns])


@functools.cache
def _facts(func: Any) -> _Facts:
    return _Facts(func)

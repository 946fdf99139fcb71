"""Results of operations on tensors without data, in microseconds, and the operations of products and convolutions.

Most operations of torch know the shapes of their results on the meta device at once. Those that load torch's compiler for it,
which takes seconds, have a row here; an operation without a row is slower, and right as well. Tests hold the rows to torch.
"""

# x input · a b inputs of two · q queries · k keys · v values

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
_META = torch.device("meta")


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=_META)


def _same(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Tensor with the shape of another one and the same order of axes in memory: torch's `empty_like`."""
    strides = x.stride()
    return _dense(x.shape, sorted(range(x.ndim), key=lambda axis: (strides[axis], -axis)), dtype or x.dtype)


def _dense(shape: Sequence[int], axes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Tensor without gaps whose axes lie in memory in this order, the innermost first."""
    strides, extent = [0] * len(shape), 1
    for axis in axes:
        strides[axis] = extent
        extent *= shape[axis]
    return torch.empty_strided(shape, strides, dtype=dtype, device=_META)


def _like(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return _same(x)


def _like_second(_: Tensor, x: Tensor, *__: Any) -> Tensor:
    return _same(x)


def _contiguous(x: Tensor, *_: Any) -> Tensor:
    return _empty(x.shape, x.dtype)


def _cast_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _same(x, dtype)


def _pointwise(a: Any, b: Any, **_: Any) -> Tensor:
    """Result of two tensors, or of one and a number, by broadcasting and promotion of their types."""
    dtype = torch.result_type(a, b)
    tensors = [one for one in (a, b) if isinstance(one, Tensor)]
    shape = _broadcast([one.shape for one in tensors])
    for one in tensors:
        if one.shape == shape:
            return _same(one, dtype)
    return _dense(shape, _axes_in_memory([one.expand(shape).stride() for one in tensors]), dtype)


def _axes_in_memory(strides: Sequence[Sequence[int]]) -> list[int]:
    """Return the axes from the innermost on, as torch orders them for tensors of which none has the shape of the result."""
    order = list(range(len(strides[0])))[::-1]
    for end in range(1, len(order)):
        for at in range(end, 0, -1):
            inner, outer = order[at - 1], order[at]
            steps = next(((one[inner], one[outer]) for one in strides if one[inner] and one[outer]), (0, 0))
            if steps[0] < steps[1]:
                break
            if steps[0] > steps[1]:
                order[at - 1], order[at] = outer, inner
    return order


def _divided(a: Any, b: Any, *, rounding_mode: str | None = None, **_: Any) -> Tensor:
    out = _pointwise(a, b)
    return out if rounding_mode or out.dtype.is_floating_point else _same(out, torch.float32)


def _compared(a: Any, b: Any, **_: Any) -> Tensor:
    return _same(_pointwise(a, b), torch.bool)


def _broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    length = max(map(len, shapes))
    padded = [(1,) * (length - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(max(sides) if 0 not in sides else 0 for sides in zip(*padded, strict=True))


def _softmax(x: Tensor, dim: int, half_to_float: bool = False, **_: Any) -> Tensor:
    return _empty(x.shape, torch.float32 if half_to_float else x.dtype)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> Tensor:
    return _empty((*a.shape[:-1], b.shape[-1]), a.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return _empty((*a.shape[:-1], b.shape[-1]), a.dtype)


def _layer_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lead = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    return _empty(x.shape, x.dtype), _empty(lead, x.dtype), _empty(lead, x.dtype)


def _norm_backward(
    gradient: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor, w: Any, b: Any, mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    return tuple(_same(one) if needed else None for one, needed in zip((x, w, b), mask, strict=True))


def _batch_norm(x: Tensor, w: Any, b: Any, mean: Any, var: Any, training: bool, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    channels = (x.shape[1] if training else 0,)
    return _same(x), _empty(channels, torch.float32), _empty(channels, torch.float32)


def _batch_norm_backward(
    gradient: Tensor, x: Tensor, w: Any, m: Any, v: Any, sm: Any, sv: Any, train: bool, eps: float, mask: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    weight = _empty((x.shape[1],), torch.float32) if w is None else w
    return tuple(_same(one) if needed else None for one, needed in zip((x, weight, weight), mask, strict=True))


def _convolution(x: Tensor, weight: Tensor, bias: Any, *geometry: Any) -> Tensor:
    stride, padding, dilation = geometry[:3]
    if geometry[3]:  # transposed
        out: Tensor = aten.convolution.default(x, weight, bias, *geometry)
        return out
    sides = (
        (side + 2 * pad - step * (kernel - 1) - 1) // by + 1
        for side, kernel, by, pad, step in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    return _empty((len(x), len(weight), *sides), x.dtype)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, biases: Any, *rest: Any) -> tuple[Tensor | None, ...]:
    for_x, for_weight, for_bias = rest[-1]
    bias = _empty((gradient.shape[1],), gradient.dtype) if for_bias else None
    return _same(x) if for_x else None, _same(weight) if for_weight else None, bias


def _padded(x: Tensor, pad: Sequence[int], *_: Any) -> Tensor:
    """Result of a padding, which begins with the last axis; a negative one cuts."""
    sides = list(x.shape)
    for at in range(0, len(pad), 2):
        sides[-1 - at // 2] += pad[at] + pad[at + 1]
    return _empty(sides, x.dtype)


def _max_pooled(
    x: Tensor, kernel: Sequence[int], stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1), ceil: bool = False
) -> tuple[Tensor, Tensor]:
    shape = _pooled(x, kernel, stride or kernel, padding, dilation, ceil=ceil)
    return _empty(shape, x.dtype), _empty(shape, torch.int64)


def _average_pooled(
    x: Tensor, kernel: Sequence[int], stride: Any = (), padding: Any = (0, 0), ceil: bool = False, *_: Any
) -> Tensor:
    return _empty(_pooled(x, kernel, stride or kernel, padding, (1, 1), ceil=ceil), x.dtype)


def _pooled(x: Tensor, *geometry: Sequence[int], ceil: bool) -> list[int]:
    sides = []
    both = ((*numbers, *numbers)[:2] for numbers in geometry)
    for side, size, by, pad, step in zip(x.shape[-2:], *both, strict=True):
        room = side + 2 * pad - step * (size - 1) - 1
        count = (room + (by - 1) * ceil) // by + 1
        sides.append(count - (ceil and (count - 1) * by >= side + pad))  # a window begins in the map or before it
    return [*x.shape[:-2], *sides]


def _group_norm(x: Tensor, w: Any, b: Any, count: int, channels: int, positions: int, groups: int, eps: float) -> Any:
    return _empty(x.shape, x.dtype), _empty((count, groups), x.dtype), _empty((count, groups), x.dtype)


def _group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, w: Any, *rest: Any
) -> tuple[Tensor | None, ...]:
    return tuple(_same(one) if needed else None for one, needed in zip((x, w, w), rest[-1], strict=True))


def _var_mean(x: Tensor, dims: Any = None, *, keepdim: bool = False, **_: Any) -> tuple[Tensor, Tensor]:
    return _reduced(x, dims, keepdim), _reduced(x, dims, keepdim)


def _flash(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Output, and the logarithms of the sums of each row."""
    lead, heads, tokens = q.shape[:3]
    return _same(q), _empty((lead, tokens, heads), torch.float32).transpose(1, 2)


def _flash_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    return tuple(_empty(one.transpose(1, 2).shape, one.dtype).transpose(1, 2) for one in (q, k, v))


def _reduced(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    axes = {dim % x.ndim for dim in dims or range(x.ndim)}
    sides = [1 if axis in axes else side for axis, side in enumerate(x.shape) if keepdim or axis not in axes]
    return _empty(sides, dtype or _total_type(x))


def _total(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    return _empty((), dtype or _total_type(x))


def _total_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype.is_floating_point or x.dtype.is_complex else torch.int64


def _vector_norm(x: Tensor, order: float, dims: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return _reduced(x, dims, keepdim, dtype=dtype)


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    parts = [part for part in parts if part.shape != (0,)]
    shape, dtype = list(parts[0].shape), functools.reduce(torch.promote_types, (part.dtype for part in parts))
    shape[dim] = sum(part.shape[dim] for part in parts)
    if all(_channels_last(part) for part in parts):
        return _dense(shape, _CHANNELS_LAST, dtype)
    return _empty(shape, dtype)


_CHANNELS_LAST = (1, 3, 2, 0)
"""Axes of a batch of maps whose channels are the innermost in memory."""


def _channels_last(x: Tensor) -> bool:
    """Return whether torch takes a tensor for maps with their channels last, by its strides."""
    least, strides = 0, x.stride()
    if x.ndim != 4 or not strides[1]:
        return False
    for axis in _CHANNELS_LAST:
        if strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(1, x.shape[axis])
    return True


def _stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return _cat([part.unsqueeze(dim) for part in parts], dim)


def _range(*ends: float, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    start, end, step = (0, ends[0], 1) if len(ends) == 1 else (*ends, 1)[:3]
    whole = all(isinstance(one, int) for one in ends)
    return _empty((max(0, math.ceil((end - start) / step)),), dtype or (torch.int64 if whole else torch.float32))


def _repeat(x: Tensor, times: Sequence[int]) -> Tensor:
    sides = (1,) * (len(times) - x.ndim) + tuple(x.shape)
    return _empty([side * count for side, count in zip(sides, times, strict=True)], x.dtype)


def _filled(x: Tensor, sizes: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _empty(sizes, dtype or x.dtype)


def _indexed(x: Tensor, indexes: Sequence[Tensor | None]) -> Tensor:
    given = [place for place, index in enumerate(indexes) if index is not None]
    if any(index is not None and index.dtype == torch.bool for index in indexes):
        raise NotImplementedError("the pass chooses by values, and what it costs is counted without any")
    chosen = _broadcast([index.shape for index in indexes if index is not None])
    start = given[0] if given == list(range(given[0], given[-1] + 1)) else 0
    rest = [side for place, side in enumerate(x.shape) if place not in given]
    return _empty((*rest[:start], *chosen, *rest[start:]), x.dtype)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _same(_pointwise(condition, _pointwise(a, b)), torch.result_type(a, b))


def _of_sizes(gradient: Tensor, sizes: Sequence[int], *_: Any) -> Tensor:
    return _empty(sizes, gradient.dtype)


def _embedding(table: Tensor, indexes: Tensor, *_: Any) -> Tensor:
    return _empty((*indexes.shape, table.shape[1]), table.dtype)


def _embedding_backward(gradient: Tensor, indexes: Tensor, rows: int, *_: Any) -> Tensor:
    return _empty((rows, gradient.shape[-1]), gradient.dtype)


def _refuse(*_: Any) -> Any:
    raise NotImplementedError("the pass depends on values, and what it costs is counted without any")


_ELEMENTWISE = (
    *("neg", "abs", "sign", "exp", "log2", "log1p", "rsqrt", "sin", "cos", "sigmoid", "tanh", "relu", "gelu", "silu"),
    *("clamp", "clamp_min", "clamp_max", "roll", "index_put", "bitwise_not"),
)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_BACKWARD = ("gelu", "silu", "sigmoid", "tanh", "threshold")
RESULTS: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).default: _like for name in _ELEMENTWISE},
    **{getattr(aten, f"{name}_backward").default: _like for name in _BACKWARD},
    **dict.fromkeys((aten.masked_fill.Scalar, aten.masked_fill.Tensor), _contiguous),
    **{
        getattr(getattr(aten, name), kind): _pointwise for name in ("add", "sub", "mul", "div") for kind in ("Tensor", "Scalar")
    },
    **dict.fromkeys((aten.pow.Tensor_Scalar, aten.pow.Scalar, aten.pow.Tensor_Tensor, aten.bitwise_and.Tensor), _pointwise),
    **{getattr(getattr(aten, name), kind): _compared for name in _COMPARISONS for kind in ("Tensor", "Scalar")},
    aten._softmax.default: _softmax,
    aten._softmax_backward_data.default: _like,
    aten._safe_softmax.default: _softmax,
    aten._local_scalar_dense.default: _refuse,
    aten.ones_like.default: _cast_like,
    aten.zeros_like.default: _cast_like,
    aten.sum.default: _total,
    aten.mean.default: _total,
    aten.sum.dim_IntList: _reduced,
    aten.mean.dim: _reduced,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.repeat.default: _repeat,
    aten.new_empty.default: _filled,
    aten.new_zeros.default: _filled,
    aten.arange.default: _range,
    aten.arange.start: _range,
    aten.arange.start_step: _range,
    aten.index.Tensor: _indexed,
    aten.where.self: _where,
    aten.slice_backward.default: _of_sizes,
    aten.select_backward.default: _of_sizes,
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _norm_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.var_mean.correction: _var_mean,
    aten.constant_pad_nd.default: _padded,
    aten.max_pool2d_with_indices.default: _max_pooled,
    aten.max_pool2d_with_indices_backward.default: _like_second,
    aten.avg_pool2d.default: _average_pooled,
    aten.avg_pool2d_backward.default: _like_second,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _flash_backward,
}
"""Functions that return the results of an operation on the meta device, in microseconds."""


# --------------------------------------------------------------------------------------------------------------------
# Operations of matrix products and convolutions


def _product_flops(a: Tensor, b: Tensor, *_: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _convolution_flops(x: Tensor, weight: Tensor, bias: Any, *geometry: Any) -> int:
    out = x if geometry[3] else _convolution(x, weight, bias, *geometry)
    return 2 * len(x) * math.prod(out.shape[2:]) * weight.numel()


def _attention_flops(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> int:
    return 2 * q[..., 0].numel() * k.shape[2] * (q.shape[3] + v.shape[3])


FLOPS: dict[Any, Callable[..., int]] = {
    aten.mm.default: _product_flops,
    aten.bmm.default: _product_flops,
    aten.addmm.default: lambda bias, *factors: _product_flops(*factors),
    aten.baddbmm.default: lambda bias, *factors: _product_flops(*factors),
    aten.convolution.default: _convolution_flops,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention_flops,
}
"""Functions that return the floating-point operations of an operation; a multiply-add is two."""

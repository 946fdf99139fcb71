"""Lazy mappings of tensors, and the state dict inside the containers that training scripts write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from vitrail.text import printable

Shape = tuple[int, ...]
Array = Shaped[np.ndarray, "..."]

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher", "target_encoder")
"""Keys of averaged weights, which score better than those that they average: preferred."""

PLAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "student",
    "params",
    "weights",
    "encoder",
)
"""Other keys of weights, from the most to the least specific."""

NOT_WEIGHTS = re.compile(
    r"opt|opt_.*|.*optim.*|.*sched.*|lr_.*|.*scaler.*|.*rng.*|random.*|callbacks|loops|args|config|h.*params|hyper.*|meta|.*loss.*"
)
"""Keys of other tensors beside the weights: optimizer state, random states, a loss's centre."""

MAX_DEPTH = 16


class CheckpointError(ValueError):
    """The weights can't be read; the message gives the reason in one line, whatever names and paths it has."""

    def __init__(self, message: str) -> None:
        line = printable(message)
        super().__init__(line if len(line) <= 1000 else f"{line[:500]} … {line[-500:]}")


class Tensors(Mapping[str, Tensor]):
    """A mapping with all names and shapes that reads a tensor on access, and caches none."""

    def __init__(self, shapes: Mapping[str, Shape], take: Callable[[str], Tensor]) -> None:
        self.shapes = dict(shapes)
        self._take = take

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._take(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # Mapping's own would take the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __repr__(self) -> str:
        return f"Tensors({len(self)} names)"


# --------------------------------------------------------------------------------------------------------------------
# Arrays


def is_weight(value: object) -> bool:
    """Return whether a value is a tensor or an array of numbers."""
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and is_number(value.dtype))


def is_number(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is numeric: strings, dates, records and objects are not. Raw bytes (V) count."""
    return dtype.kind in "biufc" or (dtype.kind == "V" and dtype.names is None)


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype | None:
    """Return the torch dtype of a NumPy one, by its name; None if torch has none.

    Two raw bytes are bfloat16: NumPy has no such type, and big_vision's files store it as V2.
    """
    name = "bfloat16" if dtype.str.endswith("V2") else dtype.name
    match = getattr(torch, name, None)
    return match if isinstance(match, torch.dtype) else None


def from_numpy(array: Array) -> Tensor:
    """Return the array as a tensor: of the same memory if torch can share it (native bytes, writable), else a copy."""
    dtype = torch_dtype(array.dtype)
    if dtype is None:
        raise CheckpointError(f"an array has the number type {array.dtype}, which torch does not know; save it as float32")
    if array.dtype.kind == "V":
        bits = array.view(f"u{array.dtype.itemsize}")
        return from_numpy(bits).view(dtype)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array)


def on_cpu(value: Tensor | Array) -> Tensor:
    """Return a leaf as a plain tensor on the CPU, without gradient and hooks; no copy if it is one."""
    return from_numpy(value) if isinstance(value, np.ndarray) else value.detach().cpu()


# --------------------------------------------------------------------------------------------------------------------
# Containers


def unwrap(tree: Mapping[Any, Any], what: str) -> tuple[Tensors, tuple[str, ...]]:
    """Return the state dict inside a checkpoint, and a note on each choice made. `what` names the checkpoint in an error.

    A container is a mapping under one of the names that training scripts use, at any depth up to 16; averaged weights are
    preferred to those that they average. Other values (epoch, args) and optimizer states are ignored.
    A tree of dicts without dots in its names is one of Flax's: its names are joined by "/", as in Google's .npz files.
    Raises CheckpointError, with the keys there are, where no state dict is found or where several are and no rule chooses.
    """
    fertile = _mappings_with_weights(tree)
    notes: list[str] = []
    for _ in range(MAX_DEPTH):
        direct = {key: value for key, value in tree.items() if isinstance(key, str) and is_weight(value)}
        inside = {key: value for key, value in tree.items() if isinstance(key, str) and id(value) in fertile}
        known = [key for key in (*AVERAGED, *PLAIN) if key in inside and (key != "encoder" or _is_flat(inside[key]))]
        others = {key: value for key, value in inside.items() if not NOT_WEIGHTS.fullmatch(key)}
        if known:
            left = [*known[1:], *(key for key in others if key not in known)]
            if any("." in key for key in direct):
                left.append(f"{len(direct)} tensors beside it")
            if left:
                notes.append(f"took {known[0]}; the file also holds {', '.join(left)}")
            tree = inside[known[0]]
        elif not others:
            return _state_dict(direct, tree, what), tuple(notes)
        elif len(others) == 1 and not direct:
            ((key, tree),) = others.items()
            notes.append(f"took {key}")
        else:
            leaves = _joined({**direct, **others}, what)
            if not any("." in key for key in leaves):
                return _state_dict(leaves, tree, what), tuple(notes)
            if not direct:
                raise CheckpointError(
                    f"{what} holds tensors under {_named(others)}, none of which is a usual name; "
                    f"load it with torch.load(…, weights_only=True) and give one of them"
                )
            notes.append(f"took the tensors at the top; the file also holds {_named(others)}")
            return _state_dict(direct, tree, what), tuple(notes)
    raise CheckpointError(f"{what} holds containers in containers, deeper than {MAX_DEPTH}; save its state dict alone")


def _state_dict(leaves: Mapping[str, Any], tree: Mapping[Any, Any], what: str) -> Tensors:
    if not any(value.ndim for value in leaves.values()):  # a step count alone is no model
        keys = f"its keys are {_named(tree)}" if tree else "it has no keys at all"
        raise CheckpointError(f"{what} holds no weights: {keys}; give one with a state dict in it")
    for name, value in leaves.items():
        if isinstance(value, np.ndarray) and torch_dtype(value.dtype) is None:
            raise CheckpointError(f'{what}: "{name}" has the number type {value.dtype}, which torch lacks; save it as float32')
        if isinstance(value, Tensor) and value.device.type == "meta":
            raise CheckpointError(f'{what}: "{name}" is on the meta device and has no numbers; save the model with its weights')
    shapes = {name: tuple(value.shape) for name, value in leaves.items()}
    return Tensors(shapes, lambda name: on_cpu(leaves[name]))


def _mappings_with_weights(tree: Mapping[Any, Any]) -> set[int]:
    """Return the ids of all mappings in `tree` with a tensor at any depth, in one pass: a pickle may share and cycle."""
    parents: dict[int, list[int]] = {id(tree): []}
    holders, todo = [], [tree]
    while todo:
        node = todo.pop()
        for value in node.values():
            if is_weight(value):
                if value.ndim:
                    holders.append(id(node))
            elif isinstance(value, Mapping):
                if id(value) not in parents:
                    parents[id(value)] = []
                    todo.append(value)
                parents[id(value)].append(id(node))
    ancestors: set[int] = set()
    while holders:
        if (holder := holders.pop()) not in ancestors:
            ancestors.add(holder)
            holders += parents[holder]
    return ancestors


def _is_flat(tree: Mapping[Any, Any]) -> bool:
    """Return whether a mapping is a state dict of torch, with dots in its names. Flax's trees have an "encoder" too."""
    return any(isinstance(key, str) and "." in key and is_weight(value) for key, value in tree.items())


def _joined(tree: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the leaves of a tree of dicts, their names joined by "/"."""
    leaves: dict[str, Any] = {}
    todo, visited = [("", tree)], set()
    while todo:
        prefix, node = todo.pop()
        if id(node) in visited or len(prefix) > 1000:  # a hostile pickle can share one dict a thousandfold
            raise CheckpointError(f'{what} holds "{prefix[:60]}" twice, inside itself or too deep; save its state dict alone')
        visited.add(id(node))
        for key, value in node.items():
            if is_weight(value):
                leaves[f"{prefix}{key}"] = value
            elif isinstance(value, Mapping):
                todo.append((f"{prefix}{key}/", value))
    return leaves


def _named(keys: Mapping[Any, Any]) -> str:
    """Format the first few keys for a message."""
    shown = [str(key)[:60] for key in list(keys)[:8]]
    return ", ".join([*shown, f"… ({len(keys)} in all)"] if len(keys) > 8 else shown)

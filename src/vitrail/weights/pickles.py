"""Load files of torch.save with its restricted unpickler: no code in them is executed."""

from __future__ import annotations

import pickle
import re
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.weights.unwrap import Array, CheckpointError

# torch's unpickler builds tensors, plain containers and numbers. Training scripts put more beside the weights, and one
# such object would have the whole file refused. For the common ones a stand-in of ours is built in place of the class:
# it takes what the pickle says of the object and does nothing with it, so no code of theirs is looked up, let alone run.
# Real classes are not let in. numpy.dtype, for one, takes its flags from the pickle, and an array of pointers that says it
# is one of numbers is a way to run code.


class Ignored:
    """Stand-in for an object without weights."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class PlainDict:
    """Stand-in for a subclass of dict; its items are kept, since weights may be among them."""

    def __new__(cls, *args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Return a dict that torch's unpickler can fill: it takes no subclass of its own."""
        return OrderedDict()


class NoBytes:
    """Stand-in for bytes, which a pickle constructs for empty ones only."""

    def __new__(cls, *args: object) -> bytes:  # type: ignore[misc]
        """Return no bytes, whatever the arguments."""
        return b""


class PickledType:
    """Stand-in for numpy.dtype: letter and size, and the byte order that follows them."""

    def __init__(self, code: object = "", *args: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype[Any] | None:
        """Return the dtype, if it is numeric."""
        if not (isinstance(self.code, str) and re.fullmatch(r"[biufc]\d+", self.code) and self.order in ("=", "<", ">", "|")):
            return None
        return np.dtype(f"{self.order}{self.code}")


class PickledArray:
    """Stand-in for numpy.ndarray: numbers are rebuilt from their bytes, other dtypes are dropped."""

    value: Array | None = None

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran_order, data = state
        numbers = dtype.to_numpy() if isinstance(dtype, PickledType) else None
        if numbers is not None:
            self.value = np.ndarray(shape, numbers, buffer=data, order="F" if fortran_order else "C")


_NUMPY = ("numpy.core", "numpy._core")  # before and since NumPy 2
_LIGHTNING = ("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing")
_FABRIC = ("lightning_fabric.utilities.data", "lightning.fabric.utilities.data")
STAND_INS: dict[str, type] = {
    "argparse.Namespace": Ignored,  # "args" of DeiT, MAE, DINO and all that began as a copy of them
    "types.SimpleNamespace": Ignored,  # the same, made by hand
    **{f"pathlib.{name}": Ignored for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},  # in "args"
    **{f"pathlib._local.{name}": Ignored for name in ("PosixPath", "WindowsPath")},  # the same, by Python 3.13
    "torch.torch_version.TorchVersion": Ignored,  # torch.__version__, kept beside the weights
    **{f"{numpy}.multiarray.scalar": Ignored for numpy in _NUMPY},  # best accuracy, loss: what metrics come out as
    **{f"{numpy}.multiarray._reconstruct": PickledArray for numpy in _NUMPY},  # weights as arrays; random states
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledType,
    "builtins.bytes": NoBytes,  # of an array of no elements
    "collections.defaultdict": PlainDict,  # histories of metrics, and what their factory is
    **{f"builtins.{name}": Ignored for name in ("int", "float", "str", "list", "dict")},
    **{f"{module}.AttributeDict": PlainDict for module in (*_LIGHTNING, *_FABRIC)},  # Lightning's "hyper_parameters"
    "yacs.config.CfgNode": PlainDict,  # "config" of the Swin and SimMIM family
    "easydict.EasyDict": PlainDict,  # the same elsewhere
}

_ALLOWED = threading.Lock()  # torch keeps what it allows in one place for the whole process


def load_pickle(path: Path, *, is_zip: bool) -> Any:
    """Load what torch.save wrote: plain containers, tensors and NumPy arrays, on the CPU.

    The zip format is memory-mapped (private: a write to a tensor never reaches the file); the one before torch 1.6 is read
    at once. Raises CheckpointError for a file that needs a class, and the parser's errors for a damaged one.
    """
    with _ALLOWED, warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # of old pickle protocols; what fails is said below
        allowed = torch.serialization.get_safe_globals()  # some libraries let in real classes when they are imported
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
        # torch.load takes any path that ends in .safetensors for one, so a misnamed pickle is read through its handle
        mapped = is_zip and path.suffix != ".safetensors"
        try:
            tree = torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if needed := re.search(r"GLOBAL ([\w.]*\w)\s", str(error)):
                raise CheckpointError(
                    f"{path} needs {needed[1]}, which could only be had by running code, and no checkpoint is let do that; "
                    f"where that library is installed, save the model's state_dict() as .safetensors and give that"
                ) from error
            reason = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
            raise pickle.UnpicklingError(reason.splitlines()[0]) from error
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(allowed)
    return _with_arrays(tree)


def _with_arrays(tree: Any) -> Any:
    """Replace stand-ins by their arrays, in place; in dicts only, where weights have names."""
    todo, visited = [tree], set()
    while todo:
        node = todo.pop()
        if not isinstance(node, dict) or id(node) in visited:
            continue
        visited.add(id(node))
        for key, value in node.items():
            if isinstance(value, PickledArray):
                node[key] = value.value
            else:
                todo.append(value)
    return tree

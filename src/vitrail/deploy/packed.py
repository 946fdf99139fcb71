"""Linear layers with oneDNN's packed weights, and GELU inside of the product, for inference on a CPU.

The weights of a copy are laid out once as oneDNN's kernels read them. The product stays in the type of the weights: in fp32
its outputs differ from torch's by rounding alone.
"""

# B leading axes · I inputs · O outputs of a linear layer

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from typing import TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.activations import gelu_tanh
from vitrail.models.linear import Linear

Model = TypeVar("Model", bound=nn.Module)

_PLAIN = ("none", "")
_FUSED = {F.gelu: ("gelu", "none"), gelu_tanh: ("gelu", "tanh")}
"""oneDNN's names of what follows a product, by the function that computes it."""


class PackedLinear(nn.Linear):
    """Linear layer that packs its weight at the first call, for about as many rows as that call has.

    `weight` and `bias` are those of the layer that it takes the place of, for code that reads them and calls `F.linear`.
    """

    def __init__(self, linear: nn.Linear, follows: tuple[str, str] = _PLAIN) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.follows = follows
        self.packed: Tensor | None = None

    def forward(self, input: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Apply the layer, and the activation that follows it. Without gradients."""
        with torch.no_grad():
            if self.packed is None:
                rows = max(1, input.numel() // self.in_features)
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                input, self.packed, self.bias, self.follows[0], [], self.follows[1]
            )
        return out


def packing_is_available() -> bool:
    """Return whether this build of torch has oneDNN's packed products."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def copy_as(model: Model, dtype: torch.dtype) -> Model:
    """Return a copy of a model for inference, with tensors in `dtype`; those that are in it already are shared.

    Batch norms keep their type: a running variance has too few digits in bf16, and their kernels take both.
    """
    kept = {id(tensor) for module in model.modules() if _is_batch_norm(module) for tensor in _tensors(module)}
    memo: dict[int, object] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        to = dtype if tensor.is_floating_point() and id(tensor) not in kept else tensor.dtype
        value = tensor.detach().to(to)
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
    return copy.deepcopy(model, memo)


def pack(model: nn.Module) -> int:
    """Replace every linear layer of a model by a packed one, with the GELU that follows it. Return how many there were.

    A model is changed in place: pass a copy.
    """
    fused: dict[nn.Module, tuple[str, str]] = {}
    for module in list(model.modules()):
        for linear, activation, remove in activations(module):
            fused[linear] = _FUSED[activation]
            remove()
    layers = [(name, layer) for name, layer in model.named_modules(remove_duplicate=False) if is_linear(layer)]
    packed: dict[nn.Module, PackedLinear] = {}  # a layer that is in two places stays one layer
    for name, layer in layers:
        packed.setdefault(layer, PackedLinear(layer, fused.get(layer, _PLAIN)))
        model.set_submodule(name, packed[layer])
    return len(packed)


def activations(module: nn.Module) -> Iterator[tuple[nn.Linear, Callable[[Tensor], Tensor], Callable[[], object]]]:
    """Yield each linear layer of a module whose output goes into GELU, that function, and a call that leaves it out.

    Found are a linear layer and GELU in sequence, and an MLP: `fc1`, `gelu` (a function) or `act` (a module), and `fc2` that
    takes as many inputs as `fc1` has outputs, which a gated MLP does not.
    """
    if isinstance(module, nn.Sequential):
        for (_, layer), (name, follower) in pairwise(module.named_children()):
            activation = _function(follower)
            if is_linear(layer) and activation in _FUSED:
                yield layer, activation, functools.partial(setattr, module, name, nn.Identity())
        return
    first, second = getattr(module, "fc1", None), getattr(module, "fc2", None)
    if is_linear(first) and is_linear(second) and first.out_features == second.in_features:
        for name in ("gelu", "act"):
            activation = _function(getattr(module, name, None))
            if activation in _FUSED:
                yield first, activation, functools.partial(setattr, module, name, nn.Identity())
                return


def is_linear(layer: object) -> TypeGuard[nn.Linear]:
    """Return True for torch's linear layer and ours; other subclasses have a meaning of their own."""
    return type(layer) in (nn.Linear, Linear)


def _function(activation: object) -> Callable[[Tensor], Tensor]:
    """Return the function of an activation that is a function or an exact `nn.GELU`; of any other, the identity."""
    if type(activation) is nn.GELU:
        return gelu_tanh if activation.approximate == "tanh" else F.gelu
    return activation if activation in (F.gelu, gelu_tanh) else _identity


def _identity(x: Tensor) -> Tensor:
    return x


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))

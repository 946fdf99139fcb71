"""The table of backends: forms of a model for inference, which devices run them, and how exact they are.

The command line and the predictor read this table. A row names its functions instead of importing them, so the table needs no
torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitrail.settings import nearest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One form of a model for inference."""

    function: str | Callable[..., Any]
    """Model and usual number of images a batch to a `forms.Forward`: a name in `vitrail.deploy.forms`, "module.name" of another
    module there, or a function. The model is in fp32 and in evaluation mode, and stays as it is."""
    needs: str | Callable[[torch.device], str | None]
    """Device to the reason why it can't run the form, or None: a name in `vitrail.deploy.forms`, or a function."""
    shows: str
    """Description, in one line."""
    tolerance: float
    """Largest difference from fp32 logits that is correct, relative to the largest of these (at least 1)."""
    auto: frozenset[str]
    """Types of devices on which "auto" measures it."""
    beside_itself: bool = False
    """Several threads may call one form at a time, and each computes in the threads that torch has there."""

    def build(self, model: Any, *, batch_size: int) -> Any:
        """Return the form of a model."""
        return _load(self.function)(model, batch_size)

    def unavailable(self, device: torch.device) -> str | None:
        """Return the reason why a device can't run it, or None."""
        reason: str | None = _load(self.needs)(device)
        return reason


BACKENDS: dict[str, Backend] = {
    "fp32": Backend(
        function="fp32",
        needs="needs_nothing",
        shows="the model as it is",
        tolerance=0.0,
        auto=frozenset({"cpu", "cuda", "mps"}),
        beside_itself=True,
    ),
    "packed": Backend(
        function="packed",
        needs="needs_packing",
        shows="fp32 with weights laid out for oneDNN, on a CPU",
        tolerance=1e-4,
        auto=frozenset({"cpu"}),
        beside_itself=True,
    ),
    "bf16": Backend(
        function="bf16",
        needs="needs_bf16",
        shows="weights and activations in bf16; on a CPU also laid out for oneDNN",
        tolerance=0.1,
        auto=frozenset({"cuda"}),
        beside_itself=True,
    ),
    "compiled": Backend(
        function="compiled",
        needs="needs_compiling",
        shows="bf16 and torch.compile, on a GPU: for many images, since the first batch takes long",
        tolerance=0.1,
        auto=frozenset(),  # compiling takes longer than a measurement may
    ),
    "openvino": Backend(
        function="openvino_forms.fp32",
        needs="needs_openvino",
        shows="OpenVINO in fp32, on a CPU: for many images, since the model is converted first; needs vitrail[export]",
        tolerance=1e-3,
        auto=frozenset(),  # tracing and converting take longer than a measurement may
    ),
    "openvino-bf16": Backend(
        function="openvino_forms.bf16",
        needs="needs_openvino_bf16",
        shows="the same in bf16, where the CPU computes that faster",
        tolerance=0.1,
        auto=frozenset(),
    ),
}
"""Every backend by its name. The others are compared with fp32."""


def require_available(name: str, device: torch.device) -> None:
    """Raise ValueError for a name that is neither "auto" nor a backend, or one that this device can't run."""
    if name == "auto":
        return
    if name not in BACKENDS:
        names = ["auto", *BACKENDS]
        raise ValueError(f'backend "{name}" is none of {", ".join(names)}{nearest(name, names)}')
    if reason := BACKENDS[name].unavailable(device):
        others = [other for other, row in BACKENDS.items() if not row.unavailable(device)]
        raise ValueError(f'backend "{name}" is not available: {reason}; use {", ".join(["auto", *others])}')


def candidates(device: torch.device) -> list[str]:
    """Return the backends that "auto" chooses from on a device; fp32 is among them."""
    names = [name for name, row in BACKENDS.items() if device.type in row.auto and not row.unavailable(device)]
    return names if "fp32" in names else ["fp32", *names]


def overview() -> str:
    """Return a line for each backend, with what it is."""
    return "\n".join(f"  {name:<15}{row.shows}" for name, row in BACKENDS.items())


def _load(name: str | Callable[..., Any]) -> Callable[..., Any]:
    if not isinstance(name, str):
        return name
    module, _, attribute = name.rpartition(".")
    function: Callable[..., Any] = getattr(importlib.import_module(f"vitrail.deploy.{module or 'forms'}"), attribute)
    return function

"""The choice of a backend: measured on the first images, and remembered for this machine and model."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.data.named import cache_home
from vitrail.deploy.backends import BACKENDS, candidates
from vitrail.deploy.forms import Forward
from vitrail.models.device import processor

SECONDS = 2.0
"""Time for a measurement."""
_ROUNDS = 5
_PASSES = 4  # of each backend that a measurement needs at least: first call, comparison, and two to time
_KEPT = 500  # choices that the file holds; the oldest go
_LAYOUT = 1  # part of every key: a backend that is computed in another way takes the next number


@dataclass(frozen=True)
class Measured:
    """Speed and exactness of one backend on some images."""

    images_per_s: float
    difference: float
    """Largest difference from fp32 logits; infinite where only one of the two is finite, NaN where fp32 has none that are."""
    largest: float
    """Largest fp32 logit, in absolute terms."""
    images: int
    """Number of images."""

    def is_correct(self, name: str) -> bool:
        """Return whether the difference is within the tolerance of a backend."""
        return self.difference <= BACKENDS[name].tolerance * max(1.0, self.largest)


@torch.inference_mode()
def race(forms: Mapping[str, Forward], images: Float[Tensor, "B C H W"], *, seconds: float = SECONDS) -> dict[str, Measured]:
    """Measure backends in turns, on as many of the images as fit into the time.

    `forms` has "fp32", the reference. One that torch can't compute is left out with a warning.
    """
    start = time.perf_counter()
    reference, one = _timed(forms["fp32"], images[:1])
    slow = one > seconds / _PASSES  # then even one image is computed no more often than it must be
    if not slow:
        one = _timed(forms["fp32"], images[:1])[1]  # without what the first call sets up
        images = images[: max(1, int(seconds / (_PASSES * len(forms) * one)))]
        reference = forms["fp32"](images)
    images = images[: len(reference)]
    outputs = {"fp32": reference}
    for name, forward in forms.items():
        if name != "fp32":
            try:
                outputs[name] = forward(images)
            except RuntimeError as error:
                warnings.warn(f"backend {name} is left out, it fails: {str(error).splitlines()[0]}", stacklevel=4)
    times = {name: one if slow and name == "fp32" else float("inf") for name in outputs}
    for turn in range(_ROUNDS):
        if turn and time.perf_counter() - start > seconds * (1 - 1 / _PASSES):
            break
        for name in outputs:
            if not (slow and name == "fp32"):
                times[name] = min(times[name], _timed(forms[name], images)[1])
    largest = largest_of(reference)
    return {
        name: Measured(len(images) / times[name], difference(logits, reference), largest, len(images))
        for name, logits in outputs.items()
    }


def difference(logits: Float[Tensor, "B K"], reference: Float[Tensor, "B K"]) -> float:
    """Return the largest difference of two sets of logits, as `Measured.difference` has it."""
    finite = reference.isfinite()
    if not bool(finite.any()):
        return float("nan")
    if not torch.equal(logits.isfinite(), finite):
        return float("inf")
    return float((logits - reference)[finite].abs().amax())


def largest_of(logits: Float[Tensor, "B K"]) -> float:
    """Return the largest finite logit in absolute terms; 0 without one."""
    return float(torch.where(logits.isfinite(), logits, 0).abs().amax())


@torch.inference_mode()
def error_of(name: str, form: Forward, model: nn.Module, images: Float[Tensor, "B C H W"]) -> float | None:
    """Return the difference of a backend's logits from fp32 where it is beyond the tolerance, else None."""
    if name == "fp32":
        return None
    reference = BACKENDS["fp32"].build(model, batch_size=len(images))(images)
    wrong = difference(form(images), reference)
    return wrong if wrong > BACKENDS[name].tolerance * max(1.0, largest_of(reference)) else None


def choose(model: nn.Module, images: Float[Tensor, "B C H W"], *, batch_size: int) -> str:
    """Return the fastest correct backend for a model and for images on their device.

    It is measured once (about 2 s), and read from the cache folder after that, where the first image checks it. Where the
    model's output is not finite, fp32 is taken and nothing remembered.
    """
    names = candidates(images.device)
    if len(names) == 1:
        return names[0]
    path, key = cache_home("speed") / "backends.json", key_of(model, images)
    forms = {name: BACKENDS[name].build(model, batch_size=batch_size) for name in names}
    remembered = _read(path).get(key)
    if isinstance(remembered, str) and remembered in names:
        wrong = error_of(remembered, forms[remembered], model, images[:1])
        if wrong is None:
            return remembered
        warnings.warn(f"{deviation(remembered, wrong)}; fp32 is used instead", stacklevel=3)
        return "fp32"
    measured = race(forms, images)
    correct = [name for name, result in measured.items() if result.is_correct(name)]
    best = max(correct, key=lambda name: measured[name].images_per_s, default="fp32")
    if all(math.isfinite(result.difference) for result in measured.values()):
        _remember(path, key, best)
    return best


def deviation(name: str, wrong: float) -> str:
    """Format a difference beyond the tolerance."""
    return f"backend {name} differs from fp32 logits by {wrong:.1e} on the first image"


def key_of(model: nn.Module, images: Float[Tensor, "B C H W"]) -> str:
    """Return the key of a choice: processor, instructions, threads, torch, device; architecture and shape of the images."""
    device = images.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor().name
    shape = f"{type(model).__name__} {getattr(model, 'config', '')!r}{model.extra_repr()}"
    return ", ".join(
        (
            f"{_LAYOUT}",
            device.type,
            name,
            torch.backends.cpu.get_cpu_capability(),
            os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
            f"{torch.get_num_threads()} threads",
            f"torch {torch.__version__}",
            hashlib.sha256(shape.encode()).hexdigest()[:16],
            "x".join(map(str, images.shape)),
        )
    )


def _timed(forward: Forward, images: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    logits = forward(images)
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)
    return logits, time.perf_counter() - start


def _read(path: Path) -> dict[str, Any]:
    """Read the remembered choices; none if the file is missing or, with a warning, damaged."""
    try:
        choices = json.loads(path.read_text())
        if isinstance(choices, dict):
            return choices
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    warnings.warn(f"{path} is damaged; backends are measured anew", stacklevel=3)
    return {}


def _remember(path: Path, key: str, name: str) -> None:
    """Add a choice to the file, atomically; warn and go on if that fails."""
    with warnings.catch_warnings(action="ignore"):  # `choose` has warned already
        choices = {other: value for other, value in _read(path).items() if other != key}
    choices = dict([*choices.items(), (key, name)][-_KEPT:])
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(choices, indent=1) + "\n")
        os.replace(draft, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        warnings.warn(f"the choice of a backend can't be kept in {path.parent} ({error.strerror or error})", stacklevel=3)

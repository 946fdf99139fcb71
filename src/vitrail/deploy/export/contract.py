"""The contract of an export: how far its logits are from the original's on real images, how fast it is, how large."""

# N images · B batch · C channels · H W image · K classes

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.deploy.forms import Forward
from vitrail.models import machine

BATCHES = (1, 32)
"""Numbers of images whose time is measured."""
SECONDS = 0.75
"""Time for the measurement of one number of images, of both together."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest deviation of an export that keeps its contract."""

    max_difference: float = 1e-3
    """Largest difference of a logit."""
    agreement: float = 1.0
    """Smallest share of images with the same most probable class."""


FP32 = Limits()
"""Those of an export that computes in fp32."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Logits of an export beside the original's, on the same images."""

    images: int
    max_difference: float
    """Largest difference of a logit; infinite where only one of the two is finite."""
    mean_difference: float
    """Mean difference of a logit, in absolute terms."""
    agreement: float
    """Share of images with the same most probable class; in a multi-label model, with the same labels from 0.5 on."""
    pixel_difference: float | None = None
    """Mean difference of the graph's own view from Pillow's, in levels of 0 to 255; None where it takes normalised images."""

    def broken(self, limits: Limits) -> str | None:
        """Return what is beyond the limits, in a few words; None where all is within."""
        if not self.max_difference <= limits.max_difference:
            return f"logits differ by {self.max_difference:.1e}, and {limits.max_difference:.0e} is allowed"
        if self.agreement < limits.agreement:
            return f"only {100 * self.agreement:.2f} % of the images keep their class, and {100 * limits.agreement:g} % must"
        return None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Time of one number of images, original and export in turns: medians."""

    batch: int
    before_s: float
    """Latency of the original, torch in fp32 as `vitrail.load` returns it, in seconds."""
    after_s: float
    """Latency of the export, in seconds."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        rates = {"before_images_per_s": self.batch / self.before_s, "after_images_per_s": self.batch / self.after_s}
        return {**dataclasses.asdict(self), **rates}


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Contents of contract.json."""

    format: str
    sha256: str | None
    """Hash of the weights that the export was made of."""
    data: str
    """Name of the data set of the images, and split."""
    deviation: Deviation
    limits: Limits
    speeds: tuple[Speed, ...]
    before_bytes: int
    """Size of the original's tensors."""
    after_bytes: int
    """Size of the export's files."""
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "format": self.format,
            "sha256": self.sha256,
            "data": self.data,
            **dataclasses.asdict(self.deviation),
            "limits": dataclasses.asdict(self.limits),
            "speed": [speed.to_dict() for speed in self.speeds],
            "size": {"before_bytes": self.before_bytes, "after_bytes": self.after_bytes},
            "machine": {**machine.facts(), "threads": self.threads},
        }


def compare_logits(logits: Float[Tensor, "N K"], reference: Float[Tensor, "N K"], *, multi_label: bool) -> Deviation:
    """Return the deviation of logits from those of the original."""
    finite = torch.equal(logits.isfinite(), reference.isfinite())
    apart = (logits - reference).abs()[reference.isfinite()]
    same = ((logits >= 0) == (reference >= 0)).all(1) if multi_label else logits.argmax(1) == reference.argmax(1)
    return Deviation(
        images=len(logits),
        max_difference=(float(apart.amax()) if apart.numel() else 0.0) if finite else float("inf"),
        mean_difference=(float(apart.mean()) if apart.numel() else 0.0) if finite else float("inf"),
        agreement=float(same.double().mean()),
    )


@torch.inference_mode()
def logits_of(forward: Forward, batches: Sequence[Tensor]) -> Float[Tensor, "N K"]:
    """Compute the logits of some batches of images."""
    return torch.cat([forward(batch).float().cpu() for batch in batches])


@torch.inference_mode()
def measure_speed(
    before: Forward, after: Forward, inputs: Mapping[int, Tensor], *, seconds: float = SECONDS
) -> tuple[Speed, ...]:
    """Measure the time of both for each number of images, in turns; `inputs` has the images of each by that number."""
    speeds = []
    for batch, images in inputs.items():
        times: tuple[list[float], list[float]] = [], []
        start, turns = time.perf_counter(), 0
        while turns < 3 or time.perf_counter() - start < seconds:
            for kept, forward in zip(times, (before, after), strict=True):
                begun = time.perf_counter()
                forward(images)
                kept.append(time.perf_counter() - begun)
            turns += 1
        first, second = (statistics.median(kept[1:]) for kept in times)  # the first call sets up
        speeds.append(Speed(batch=batch, before_s=first, after_s=second))
    return tuple(speeds)

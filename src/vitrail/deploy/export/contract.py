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
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.deploy.forms import Forward
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.paired import Paired, compare_pair
from vitrail.models import machine

BATCHES = (1, 32)
"""Numbers of images whose time is measured."""
SECONDS = 0.75
"""Time for the measurement of one number of images, of both together."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest deviation of an export that keeps its contract."""

    max_difference: float | None = 1e-3
    """Largest difference of a logit; None: any."""
    agreement: float | None = 1.0
    """Smallest share of images with the same most probable class; None: any."""


FP32 = Limits()
"""Those of an export that computes in fp32."""
UNLIMITED = Limits(max_difference=None, agreement=None)
"""Those of an export in int8, whose accuracy has a budget instead."""


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
        if limits.max_difference is not None and not self.max_difference <= limits.max_difference:
            return f"logits differ by {self.max_difference:.1e}, and {limits.max_difference:.0e} is allowed"
        if limits.agreement is not None and self.agreement < limits.agreement:
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
class Change:
    """Accuracy of a model and of what was made of it, on the same labelled images."""

    method: str
    data: str
    """Data set and split."""
    before: Accuracy
    after: Accuracy
    paired: Paired
    """The second minus the first."""

    @classmethod
    def of(cls, before: Bool[Tensor, " N"], after: Bool[Tensor, " N"], *, method: str, data: str) -> Change:
        """Compare which images two models get right."""
        rates = (Accuracy(int(correct.sum()), len(correct)) for correct in (before, after))
        return cls(method=method, data=data, before=next(rates), after=next(rates), paired=compare_pair(before, after))

    @property
    def loss(self) -> float:
        """Loss of top-1 in points; negative for a gain."""
        return -100 * self.paired.difference

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "method": self.method,
            "data": self.data,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "loss_points": self.loss,
            "paired": self.paired.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Quantisation of a model, and its loss."""

    change: Change
    calibration: str
    """Images that the ranges of activations are taken from."""
    layers: tuple[str, ...]
    """Layers in int8."""
    in_float: tuple[str, ...]
    """Layers that stay in float to keep the budget, the most sensitive first."""
    max_loss: float
    """Budget, in points of top-1."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            **self.change.to_dict(),
            "max_loss_points": self.max_loss,
            "calibration": self.calibration,
            "in_int8": list(self.layers),
            "in_float": list(self.in_float),
        }


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
    merging: Change | None = None
    """Loss of token merging beside the model without it; the logits are compared with the merged model."""
    int8: Int8 | None = None
    """Quantisation, and its loss; None for fp32."""

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
            **({} if self.merging is None else {"merging": self.merging.to_dict()}),
            **({} if self.int8 is None else {"int8": self.int8.to_dict()}),
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


def correct_of(forward: Forward, batches: Sequence[Tensor], labels: Int64[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Return which images of some batches get their label."""
    return logits_of(forward, batches).argmax(1) == labels


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

"""Post-training quantisation to int8 within a budget of accuracy; the layers that need it stay in float."""

# N images · B batch · C channels · H W image · K classes

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.deploy.export.contract import logits_of
from vitrail.deploy.export.formats import FORMATS, Format, Quantizer
from vitrail.deploy.export.images import Images
from vitrail.deploy.export.sensitivity import layer_errors
from vitrail.deploy.forms import Forward, fp32
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.paired import Paired, compare_pair
from vitrail.models.backbone import Backbone
from vitrail.models.machine import missing

MAX_LOSS = 0.3
"""Default budget, in points of top-1."""
CALIBRATION_IMAGES = 300
EVALUATION_IMAGES = 5000
"""Largest number of validation images that the loss is measured on."""
SENSITIVITY_IMAGES = 32
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How a model was quantised, and what it lost."""

    method: str
    calibration: str
    """Images that the ranges of activations are taken from."""
    layers: int
    """Layers in int8."""
    in_float: tuple[str, ...]
    """Layers that stay in float to keep the budget, the most sensitive first."""
    data: str
    """Data set and split that the loss is measured on."""
    max_loss: float
    """Budget, in points of top-1."""
    before: Accuracy
    after: Accuracy
    paired: Paired
    """The second minus the first."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "method": self.method,
            "calibration": self.calibration,
            "layers": self.layers,
            "in_float": list(self.in_float),
            "data": self.data,
            "max_loss_points": self.max_loss,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "paired": self.paired.to_dict(),
        }


def quantizer_of(row: Format, name: str) -> Quantizer:
    """Return the quantizer of a format. Raises ValueError for a format without int8, and where a package is missing."""
    if row.quantizer is None:
        having = ", ".join(other for other, each in FORMATS.items() if each.quantizer)
        raise ValueError(f"{name} has no int8; export to {having}, or leave --int8 out")
    if reason := missing(row.quantizer_packages):
        raise ValueError(f"{reason}, which int8 needs; install them: pip install 'vitrail[export]'")
    quantizer: Quantizer = importlib.import_module(row.quantizer)
    return quantizer


def quantize_within(
    model: Backbone,
    quantizer: Quantizer,
    source: Path,
    path: Path,
    *,
    calibration: tuple[Images, Float[Tensor, "n C H W"]],
    evaluation: tuple[Images, Float[Tensor, "N C H W"]],
    max_loss: float = MAX_LOSS,
) -> Int8:
    """Write `path`, the file `source` of a model in int8, with a loss of top-1 within `max_loss` points.

    Images come with the inputs made of them. First all layers are quantised; where that loses too much, the most sensitive ones
    stay in float: 1, 2, 4, 8 …, and at most half of them. Raises ValueError where that is not enough.
    """
    data = f"{evaluation[0].data}, {evaluation[0].split}"
    labels, batches = evaluation[0].labels, evaluation[1].split(_BATCH)
    right = _correct(fp32(model, _BATCH), batches, labels)
    layers = match_layers(quantizer.weights(source), model.stored())
    order: list[str] = []
    paired, count = None, 0
    while count <= len(layers) // 2:
        if count and not order:
            modules = ((name, model.stored().get_submodule(name)) for name in layers)
            order = list(layer_errors(model, modules, calibration[1][:SENSITIVITY_IMAGES]))
        in_float = order[:count]
        quantizer.quantize(source, path, calibration[1], in_float=[layers[name] for name in in_float])
        after = _correct(quantizer.open_forward(path), batches, labels)
        paired = compare_pair(right, after)
        if -100 * paired.difference <= max_loss:
            return Int8(
                method=quantizer.METHOD,
                calibration=f"{len(calibration[1])} images of {calibration[0].data}, {calibration[0].split}"
                if quantizer.CALIBRATED
                else "none: ranges are taken when it runs",
                layers=len(layers) - count,
                in_float=tuple(in_float),
                data=data,
                max_loss=max_loss,
                before=Accuracy(int(right.sum()), len(right)),
                after=Accuracy(int(after.sum()), len(after)),
                paired=paired,
            )
        count = 2 * count or 1
    lost = "" if paired is None else f": {-100 * paired.difference:.2f} with {count // 2} of them in float"
    raise ValueError(
        f"int8 loses more than {max_loss:g} points of top-1 on {data}, though half of the {len(layers)} layers may stay in float"
        f"{lost}; nothing is written: allow more with --max-loss, or leave --int8 out"
    )


def match_layers(weights: Mapping[str, NDArray[Any]], model: nn.Module) -> dict[str, str]:
    """Return the operation of a file for each linear layer and convolution of a model, found by the weights.

    A layer whose weights are changed in the file, such as a convolution that a batch norm was folded into, is missing.
    """
    operations = {_key(weight): name for name, weight in weights.items()}
    matched = dict[str, str]()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight.detach().float().numpy()
            keys = (_key(weight), _key(weight.T))
            matched |= {name: operations[key] for key in keys if key in operations}
    return matched


def _key(weight: NDArray[Any]) -> bytes:
    return hashlib.sha256(weight.tobytes()).digest()


def _correct(forward: Forward, batches: tuple[Tensor, ...], labels: Tensor) -> Bool[Tensor, " N"]:
    return logits_of(forward, batches).argmax(1) == labels

"""Post-training quantisation to int8 within a budget of accuracy; the layers that need it stay in float."""

# N images · B batch · C channels · H W image · K classes

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.deploy.export.contract import Change, Int8, correct_of
from vitrail.deploy.export.formats import FORMATS, Format, Quantizer
from vitrail.deploy.export.images import read_labelled
from vitrail.deploy.export.quiet import quiet
from vitrail.deploy.export.sensitivity import layer_errors
from vitrail.deploy.forms import Forward, fp32
from vitrail.models.backbone import Backbone
from vitrail.models.machine import missing

MAX_LOSS = 0.3
"""Default budget, in points of top-1."""
CALIBRATION_IMAGES = 300
SENSITIVITY_IMAGES = 32
LAYERS = (nn.Linear, nn.Conv2d)
_BATCH = 32


def quantizer_of(row: Format, name: str) -> Quantizer:
    """Return the quantizer of a format. Raises ValueError for a format without int8, and where a package is missing."""
    if row.quantizer is None:
        having = " or ".join(other for other, each in FORMATS.items() if each.quantizer)
        raise ValueError(f"{name} has no int8; export to {having}, or leave --int8 out")
    if reason := missing((*row.packages, *row.quantizer_packages)):
        raise ValueError(f"{reason}, which int8 needs; install them: pip install 'vitrail[export]'")
    with quiet():  # torch's notes on compilers, which NNCF asks for
        quantizer: Quantizer = importlib.import_module(row.quantizer)
    return quantizer


def quantize_file(
    model: Backbone,
    write: Callable[[Path], None],
    quantizer: Quantizer,
    path: Path,
    *,
    open_forward: Callable[[Path], Forward],
    source: str | Path,
    images: str | None,
    max_loss: float,
) -> Int8:
    """Write the file of a model in int8: calibrated on training images, measured on validation images.

    `write` writes it in fp32, `open_forward` opens either. Raises ValueError where the loss is beyond `max_loss`, and for data
    without these images.
    """
    if max_loss < 0:
        raise ValueError(f"max_loss {max_loss:g} must be at least 0 points")
    assert model.preprocessing is not None
    preprocessing = model.preprocessing
    known = read_labelled(model, source, images, split="train", count=CALIBRATION_IMAGES)
    fresh = read_labelled(model, source, images, split="val")
    with tempfile.TemporaryDirectory() as folder:
        floating = Path(folder) / path.name
        write(floating)
        return quantize_within(
            model,
            quantizer,
            floating,
            path,
            open_forward=open_forward,
            calibration=normalise(known.views, preprocessing),
            inputs=normalise(fresh.views, preprocessing),
            labels=fresh.labels,
            data=(f"{known.data}, {known.split}", f"{fresh.data}, {fresh.split}"),
            max_loss=max_loss,
        )


def quantize_within(
    model: Backbone,
    quantizer: Quantizer,
    floating: Path,
    path: Path,
    *,
    open_forward: Callable[[Path], Forward],
    calibration: Float[Tensor, "n C H W"],
    inputs: Float[Tensor, "N C H W"],
    labels: Int64[Tensor, " N"],
    data: tuple[str, str],
    max_loss: float,
) -> Int8:
    """Write `path`, the file `floating` of a model in int8, with a loss of top-1 within `max_loss` points.

    `data` names the images of calibration and those of the loss. First all layers are quantised; where that loses too much, the
    most sensitive ones stay in float: 1, 2, 4, 8 …, and at most half of them. Raises ValueError where that is not enough.
    """
    batches = inputs.split(_BATCH)
    right = correct_of(fp32(model, _BATCH), batches, labels)
    weights = quantizer.weights(floating)
    layers = match_layers(weights, model.stored())
    others = sorted(weights.keys() - layers.values())  # weights that are no layer's stay in float
    order, losses = list[str](), list[str]()
    for count in (0, *(2**power for power in range((len(layers) // 2).bit_length()))):
        if count and not order:
            modules = ((name, model.stored().get_submodule(name)) for name in layers)
            order = list(layer_errors(model, modules, calibration[:SENSITIVITY_IMAGES]))
        in_float = order[:count]
        quantizer.quantize(floating, path, calibration, in_float=[*others, *(layers[name] for name in in_float)])
        after = correct_of(open_forward(path), batches, labels)
        change = Change.of(right, after, method=quantizer.METHOD, data=data[1])
        if change.loss <= max_loss:
            known = (
                f"{len(calibration)} images of {data[0]}" if quantizer.CALIBRATED else "none: ranges are those of each batch"
            )
            return Int8(
                change=change,
                calibration=known,
                layers=tuple(name for name in layers if name not in in_float),
                in_float=tuple(in_float),
                max_loss=max_loss,
            )
        losses.append(f"{change.loss:.2f} with {count} of {len(layers)} layers in float")
    raise ValueError(
        f"int8 loses more than {max_loss:g} points of top-1 on {data[1]} ({', '.join(losses)}), so nothing is written; "
        "allow more with --max-loss, or leave --int8 out"
    )


def match_layers(weights: Mapping[str, NDArray[Any]], model: nn.Module) -> dict[str, str]:
    """Return the operation of a file for each linear layer and convolution of a model.

    They are found by their weights; one whose weights differ, such as a convolution that a batch norm was folded into, by the
    shape and the order. Layers that are no operation of the file are missing.
    """
    own = {name: layer.weight.detach().float().numpy() for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
    left, matched = dict(weights), dict[str, str]()
    for same in (_same_weights, _same_shape):
        for name in [name for name in own if name not in matched]:
            operation = next((each for each, other in left.items() if same(own[name], other)), None)
            if operation is not None:
                matched[name] = operation
                del left[operation]
    return {name: matched[name] for name in own if name in matched}


def _same_weights(layer: NDArray[Any], operation: NDArray[Any]) -> bool:
    return np.array_equal(layer, operation) or np.array_equal(layer.T, operation)


def _same_shape(layer: NDArray[Any], operation: NDArray[Any]) -> bool:
    return layer.shape == operation.shape

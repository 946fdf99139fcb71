"""A model as a graph of torch.export: any number of images, and any size where asked for."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitrail.deploy.export.raw import RawImages
from vitrail.deploy.packed import copy_as
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair
from vitrail.text import one_line

Inputs = Literal["normalised", "raw"]
"""Images that a file takes: fp32 (B, C, H, W) as `data.augment.normalise` returns them, or uint8 (B, H, W, C) as decoded."""

_AXES: dict[Inputs, tuple[str, ...]] = {
    "normalised": ("batch", "channels", "height", "width"),
    "raw": ("batch", "height", "width", "channels"),
}
INPUT, OUTPUT = "images", "logits"
"""Names of a file's input and output."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A model as a graph."""

    program: ExportedProgram
    example: Tensor
    """Images of the right shape and type."""
    inputs: Inputs
    dynamic: dict[int, str]
    """Names of the input's axes that have any length, by position."""


def trace(model: Backbone, *, size: Pair, dynamic_size: bool = False) -> Traced:
    """Trace a model for any number of normalised images of one (height, width), or of any size with `dynamic_size`.

    Raises ValueError for a model that can't be one graph for images of any size.
    """
    example = torch.randn(2, model.config.in_channels, *size)
    if not dynamic_size:
        return _traced(Logits(model), example, "normalised", {0: Dim("batch", min=1)})
    if not model.any_size_in_graph:
        raise ValueError(f"{type(model).__name__} is a graph for images of one size; leave --dynamic size out, or use a ViT")
    sides = {2: _side("height", model.side_unit[0]), 3: _side("width", model.side_unit[1])}
    try:
        traced = _traced(Logits(model), example, "normalised", {0: Dim("batch", min=1), **sides})
        with torch.no_grad():  # the tracer may hold a graph to the size of its example, and says so when it runs
            traced.program.module()(torch.zeros(1, model.config.in_channels, size[0] + model.side_unit[0], size[1]))
    except Exception as error:
        reason = one_line(error).split(". ")[0][:160]
        raise ValueError(
            f"this {type(model).__name__} is no graph for images of any size ({reason}); leave --dynamic size out"
        ) from error
    return traced


def trace_raw(model: Backbone) -> Traced:
    """Trace a model for any number of decoded images, uint8 (B, H, W, C) of one size, which is any."""
    assert model.preprocessing is not None
    example = torch.randint(0, 256, (2, 37, 53, model.config.in_channels), dtype=torch.uint8)
    dims = {axis: Dim(name, min=1) for axis, name in enumerate(("batch", "height", "width"))}
    return _traced(RawImages(model, model.preprocessing), example, "raw", dims)


def _traced(graph: nn.Module, example: Tensor, inputs: Inputs, dims: dict[int, Any]) -> Traced:
    names = {axis: name for axis, name in enumerate(_AXES[inputs]) if axis in dims}
    with torch.no_grad():
        program = torch.export.export(copy_as(graph, torch.float32).eval(), (example,), dynamic_shapes=(dims,))
    return Traced(program, example, inputs, names)


class Logits(nn.Module):
    """A model with fp32 logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits."""
        return self.model(images)


def _side(name: str, unit: int) -> Any:
    """Return the dimension of one side, a multiple of `unit` pixels."""
    return Dim(name, min=2) if unit == 1 else unit * Dim(f"{name}_patches", min=1)

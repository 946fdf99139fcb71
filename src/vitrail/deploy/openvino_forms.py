"""Forms of a model in OpenVINO, for inference on a CPU: see `Backend.function`."""

# B batch · C channels · H W image

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from vitrail.deploy.export.to_openvino import compile_forward, read, write
from vitrail.deploy.export.trace import trace
from vitrail.deploy.forms import Forward
from vitrail.models.backbone import Backbone
from vitrail.settings import pair


def fp32(model: Backbone, batch_size: int) -> Forward:
    """Convert a model, which takes some seconds, and compile it in fp32."""
    return build(model, batch_size, precision="f32")


def bf16(model: Backbone, batch_size: int) -> Forward:
    """Convert a model, and compile it in bf16."""
    return build(model, batch_size, precision="bf16")


def build(model: Backbone, batch_size: int, *, precision: str) -> Forward:
    """Convert a model for images of its own size.

    It is compiled at the first call, once for `batch_size` images, which is faster, and once for any other number.
    """
    size = model.config.img_size if model.preprocessing is None else model.preprocessing.img_size
    with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        write(trace(model, size=pair(size)), path, {})
        graph = read(path)
    compiled: dict[bool, Forward] = {}

    def forward(images: Tensor) -> Tensor:
        full = len(images) == batch_size
        if full not in compiled:
            form = graph.clone()
            if full:
                form.reshape(list(images.shape))
            compiled[full] = compile_forward(form, precision=precision)
        return compiled[full](images)

    return forward

"""Predictions: normalised images to logits, by us and by other libraries with the same weights."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.bench.case import OURS, Case
from vitrail.bench.contender import DTYPES, Contender, Precision
from vitrail.bench.processes import Call
from vitrail.deploy.backends import BACKENDS
from vitrail.models.device import autocast, keep_freed_memory
from vitrail.weights import load


def rows(precisions: Sequence[Precision]) -> list[Contender]:
    """Return the contenders."""
    kinds = (("Vitrail", ours, ()), ("timm", timm, ("timm",)), ("OpenVINO", openvino, ("openvino",)))
    every = [Contender(name, precision, build, needs) for name, build, needs in kinds for precision in precisions]
    return [
        *every,
        Contender("torchvision", "fp32", torchvision, ("torchvision",)),
        Contender("ONNX Runtime", "fp32", onnxruntime, ("onnxruntime", "onnx", "onnxscript")),
    ]


def ours(case: Case, precision: Precision) -> Call:
    """Build the model as `Predictor` runs it, in a number type: on a CPU packed, and with freed memory kept."""
    device = torch.device(case.device)
    names = {"fp32": ("packed", "fp32"), "bf16": ("bf16",)}[precision]
    name = next((name for name in names if BACKENDS[name].unavailable(device) is None), None)
    if name is None:
        raise ValueError(f"{BACKENDS[names[0]].unavailable(device)}")
    if device.type == "cpu":
        keep_freed_memory()
    form = BACKENDS[name].build(load(case.file(OURS)).to(device).eval(), batch_size=case.batch_size)
    images = case.images()

    @torch.inference_mode()
    def call() -> object:
        return form(images)

    return call


def timm(case: Case, precision: Precision) -> Call:
    """Build timm's model."""
    return _forward(timm_model(case), case, precision)


def torchvision(case: Case, precision: Precision) -> Call:
    """Build torchvision's model."""
    return _forward(torchvision_model(case), case, precision)


def onnxruntime(case: Case, precision: Precision) -> Call:
    """Export our model to ONNX, and build a session of ONNX Runtime. Raises ValueError for a device that it lacks."""
    import onnxruntime

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(torch.device(case.device).type)
    if provider not in onnxruntime.get_available_providers():
        raise ValueError(f"this build of onnxruntime does not run on {case.device}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    images = case.images().cpu()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its exporter
        file = Path(folder, "model.onnx")
        torch.onnx.export(load(case.file(OURS)).eval(), (images,), file, input_names=["images"], dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file, options, providers=[provider])
    feed = {"images": images.numpy()}
    return lambda: session.run(None, feed)[0]


def openvino(case: Case, precision: Precision) -> Call:
    """Convert our model to OpenVINO. Raises ValueError for a GPU."""
    import openvino

    from vitrail.deploy.export.to_openvino import convert

    if torch.device(case.device).type != "cpu":
        raise ValueError(f"OpenVINO is measured on a CPU, and this is {case.device}")
    images = case.images()
    program = torch.export.export(load(case.file(OURS)).eval(), (images,))
    config = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
    }
    compiled = openvino.compile_model(convert(program), "CPU", config)
    feed = images.numpy()
    return lambda: compiled(feed)[0]


def timm_model(case: Case) -> nn.Module:
    """Load the weights into timm's model. Raises ValueError if timm can't be this model."""
    from timm import create_model

    model: nn.Module = create_model(f"local-dir:{case.file('timm')}", pretrained=True)
    return model.to(case.device)


def torchvision_model(case: Case) -> nn.Module:
    """Load the weights into torchvision's model. Raises ValueError if torchvision can't be this model."""
    from torchvision.models import SwinTransformer, VisionTransformer, swin_transformer

    file = case.file("torchvision")
    beside: dict[str, Any] = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    arguments: dict[str, Any] = beside["arguments"]
    parts = {name: getattr(swin_transformer, kind) for name, kind in beside.get("parts", {}).items()}
    model: nn.Module = (SwinTransformer if "window_size" in arguments else VisionTransformer)(**arguments, **parts)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.to(case.device)


def _forward(model: nn.Module, case: Case, precision: Precision) -> Call:
    images, device, dtype = case.images(), torch.device(case.device), DTYPES[precision]
    model = model.eval()

    @torch.inference_mode()
    def call() -> object:
        with autocast(device, dtype):
            return model(images)

    return call

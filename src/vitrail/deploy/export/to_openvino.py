"""OpenVINO's intermediate representation: converted from the traced graph, compiled for the CPU."""

# B batch · K classes

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import openvino
import torch
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch import Tensor

from vitrail.deploy.export.quiet import quiet
from vitrail.deploy.export.trace import INPUT, OUTPUT, Traced
from vitrail.deploy.forms import Forward

INFO = "vitrail"
"""Section of the metadata (rt_info) that is ours."""


def write(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the .xml file, and the .bin file with its weights, in fp32. Raises ValueError for what OpenVINO can't compute.

    The frontend is called as `openvino.convert_model` calls it, which would also report the call to a statistics server.
    """
    with quiet():
        decoder = TorchFXPythonDecoder.from_exported_program(traced.program)  # which the frontend does not keep alive
        frontend = FrontEndManager().load_by_framework("pytorch")
        try:
            model = openvino.Model(frontend.convert(frontend.load(decoder)))
        except OpConversionFailure as error:
            lacks = sorted(set(re.findall(r"aten\.\w+", str(error))))
            raise ValueError(
                f"OpenVINO can't compute {', '.join(lacks) or 'the graph'} of this model; export it to onnx"
            ) from error
    images, logits = model.input(), model.output()
    shape = images.get_partial_shape()
    for axis in traced.dynamic:
        shape[axis] = openvino.Dimension(1, -1)
    images.get_node().set_partial_shape(shape)
    images.get_tensor().set_names({INPUT})
    logits.get_tensor().set_names({OUTPUT})
    model.validate_nodes_and_infer_types()
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), [INFO, key])  # one line: an attribute of XML keeps no line ends
    openvino.save_model(model, path, compress_to_fp16=False)


def open_forward(path: Path) -> Forward:
    """Open a file for the CPU, in fp32: without the hint OpenVINO computes in bf16 where the processor has it."""
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", config)

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.numpy(force=True))[OUTPUT].copy())

    return forward


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file."""
    entries = openvino.Core().read_model(path).get_rt_info([INFO]).astype(dict)
    metadata = {}
    for key, value in entries.items():
        text = value.astype(str) if isinstance(value, openvino.OVAny) else str(value)
        with contextlib.suppress(ValueError):
            metadata[key] = str(json.loads(text))
    return metadata

"""OpenVINO's intermediate representation: converted from the traced graph, compiled for the CPU."""

# B batch · K classes

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import openvino
import torch
from openvino.frontend import FrontEndManager, OpConversionFailure
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch import Tensor
from torch.export import ExportedProgram

from vitrail.deploy.export.quiet import quiet
from vitrail.deploy.export.trace import INPUT, OUTPUT, Traced
from vitrail.deploy.forms import Forward

Compiled = TypeVar("Compiled")

INFO = "vitrail"
"""Section of the metadata (rt_info) that is ours."""


def write(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the .xml file, and the .bin file with its weights, in fp32. Raises ValueError for what OpenVINO can't compute."""
    model = convert(traced.program)
    images, logits = model.input(), model.output()
    sides = [openvino.Dimension(1, -1) if axis in traced.dynamic else side for axis, side in enumerate(traced.example.shape)]
    images.get_node().set_partial_shape(openvino.PartialShape(sides))  # the frontend leaves all of them open
    images.get_tensor().set_names({INPUT})
    logits.get_tensor().set_names({OUTPUT})
    model.validate_nodes_and_infer_types()
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), [INFO, key])  # one line: an attribute of XML keeps no line ends
    openvino.save_model(model, path, compress_to_fp16=False)


def convert(program: ExportedProgram) -> openvino.Model:
    """Convert a graph of torch.export. Raises ValueError for what OpenVINO can't compute."""
    with quiet():
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # which the frontend does not keep alive
        frontend = FrontEndManager().load_by_framework("pytorch")
        try:
            return openvino.Model(frontend.convert(frontend.load(decoder)))
        except OpConversionFailure as error:
            lacks = sorted(set(re.findall(r"aten\.\w+", str(error))))
            raise ValueError(
                f"OpenVINO can't compute {', '.join(lacks) or 'the graph'} of this model; export it to onnx"
            ) from error


def read(path: Path) -> openvino.Model:
    """Read a file into memory, which is then no longer needed."""
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})
    return core.read_model(path)


def open_forward(path: Path) -> Forward:
    """Open a file for the CPU, in fp32: without the hint OpenVINO computes in bf16 where the processor has it.

    Of a file in int8, what is not in int8 is computed as OpenVINO chooses, which is fastest.
    """
    model = openvino.Core().read_model(path)
    in_int8 = any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())
    return compile_forward(model, precision=None if in_int8 else "f32")


def compile_forward(model: openvino.Model, *, precision: str | None) -> Forward:
    """Compile a model for the CPU, with as many threads as torch has; precision None is OpenVINO's choice."""
    config = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    hint = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    compiled = in_own_thread(lambda: openvino.Core().compile_model(model, "CPU", {**config, **hint}))

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.numpy(force=True))[OUTPUT].copy())

    return forward


def in_own_thread(compiles: Callable[[], Compiled]) -> Compiled:
    """Call what compiles a model in a thread of its own.

    OpenVINO gives the thread that compiles a stack for signals and frees it with the model: Ctrl-C in that thread would then
    end the process with a segmentation fault.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compiles).result()


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file."""
    entries = openvino.Core().read_model(path).get_rt_info([INFO]).astype(dict)
    metadata = {}
    for key, value in entries.items():
        text = value.astype(str) if isinstance(value, openvino.OVAny) else str(value)
        with contextlib.suppress(ValueError):
            metadata[key] = str(json.loads(text))
    return metadata

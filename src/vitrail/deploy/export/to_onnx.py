"""ONNX files, written by torch's exporter and opened by onnxruntime."""

# B batch · K classes

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from vitrail.deploy.export.quiet import quiet
from vitrail.deploy.export.trace import INPUT, OUTPUT, Traced
from vitrail.deploy.forms import Forward

OPSET = 23
"""The first opset with attention as one operator, which runtimes compute without its intermediate results."""
EXTERNAL_BYTES = 1_900_000_000
"""Size of the weights above which they lie in a file beside: a message of protobuf ends at 2 GB."""


def write(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file. Weights of more than `EXTERNAL_BYTES` go to a second file, named after it with ".data"."""
    with quiet():
        exported = torch.onnx.export(
            traced.program,
            (traced.example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert exported is not None
    model = exported.model
    taken, given = model.graph.inputs[0].shape, model.graph.outputs[0].shape
    assert taken is not None
    assert given is not None
    for axis, name in traced.dynamic.items():
        taken[axis] = name
    given[0] = traced.dynamic[0]
    model.metadata_props.update(metadata)
    for node in model.graph.all_nodes():  # names of source files and lines
        node.metadata_props.clear()
        node.doc_string = None
    size = sum(tensor.numel() * tensor.element_size() for tensor in traced.program.state_dict.values())
    exported.save(path, external_data=size > EXTERNAL_BYTES)
    onnx.checker.check_model(path)


def open_forward(path: Path) -> Forward:
    """Open an ONNX file with onnxruntime, with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        logits = session.run([OUTPUT], {INPUT: images.numpy(force=True)})[0]
        return torch.from_numpy(logits)

    return forward


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file."""
    model = onnx.load(path, load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}

"""Configuration of model servers, written from an export's own input and output: Triton, and OpenVINO Model Server.

The folder of the export is one model of such a server: its version is the folder `1`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vitrail.deploy.export.contract import BATCHES
from vitrail.deploy.export.metadata import ExportCard
from vitrail.text import one_line

TRITON, OVMS, LABELS = "config.pbtxt", "config.json", "labels.txt"
"""Names of the files."""
MODELS = "/models"
"""Folder in which the container of OpenVINO Model Server sees the models."""
_QUEUE_DELAY_US = 1000
_QUEUE_IMAGES = 256
_TYPES = {"FLOAT": "TYPE_FP32", "UINT8": "TYPE_UINT8"}


@dataclass(frozen=True)
class Port:
    """Input or output of an ONNX file."""

    name: str
    type: str
    """As in config.pbtxt, such as TYPE_FP32."""
    dims: tuple[int, ...]
    """Lengths of all axes but the first, the batch; -1 is any."""


def ports(file: Path) -> tuple[Port, Port]:
    """Return input and output of an ONNX file whose first axis is the batch."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph

    def port(value: onnx.ValueInfoProto) -> Port:
        tensor = value.type.tensor_type
        axes = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim]
        assert axes[0] == -1  # every export takes any number of images
        return Port(value.name, _TYPES[onnx.TensorProto.DataType.Name(tensor.elem_type)], tuple(axes[1:]))

    (images,), (logits,) = graph.input, graph.output
    return port(images), port(logits)


def write_triton(folder: Path, file: Path, card: ExportCard, *, name: str) -> None:
    """Write config.pbtxt, with dynamic batches and a bounded queue, and labels.txt, a class a line."""
    images, logits = ports(file)
    (folder / LABELS).write_text("".join(f"{one_line(label)}\n" for label in card.classes), encoding="utf-8")
    (folder / TRITON).write_text(
        f"""# Triton Inference Server. Wants onnxruntime's backend of 1.23 or later.
name: {json.dumps(name)}
backend: "onnxruntime"
max_batch_size: {max(BATCHES)}
input [
  {{ {_triton(images)} }}
]
output [
  {{ {_triton(logits)} label_filename: "{LABELS}" }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {_QUEUE_DELAY_US}
  default_queue_policy {{ max_queue_size: {_QUEUE_IMAGES} }}
}}
""",
        encoding="utf-8",
    )


def _triton(port: Port) -> str:
    return f'name: "{port.name}" data_type: {port.type} dims: [ {", ".join(map(str, port.dims))} ]'


def write_ovms(folder: Path, file: Path, card: ExportCard, *, name: str) -> None:
    """Write config.json for a server that sees the export's folder as MODELS/name. The shapes are the file's own."""
    model = {"name": name, "base_path": f"{MODELS}/{name}", "target_device": "CPU"}
    text = json.dumps({"model_config_list": [{"config": model}]}, indent=2)
    (folder / OVMS).write_text(text + "\n", encoding="utf-8")

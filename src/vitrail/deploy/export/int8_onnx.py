"""int8 of ONNX files, by ONNX Runtime: linear layers, weights by output, activations as they come (dynamic).

On a trained model of ours it was faster than the static way and a third as far from fp32's logits; NNCF's ONNX files did not
open (dev/LOG.md). The range of activations is that of the whole batch, so an image's logits depend a little on its neighbours.
"""

# B batch · C channels · H W image

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from jaxtyping import Float
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor

from vitrail.deploy.export.quiet import quiet

METHOD = "ONNX Runtime, dynamic: weights by output, activations by batch"
CALIBRATED = False
_PRODUCTS = ("MatMul", "Gemm")


def weights(source: Path) -> dict[str, NDArray[Any]]:
    """Return the weights of the linear layers of a file, by node."""
    graph = onnx.load(source).graph
    values = {value.name: value for value in graph.initializer}
    products = (node for node in graph.node if node.op_type in _PRODUCTS and node.input[1] in values)
    return {node.name: numpy_helper.to_array(values[node.input[1]]) for node in products}


def quantize(source: Path, path: Path, images: Float[Tensor, "B C H W"], *, in_float: Sequence[str]) -> None:
    """See `Quantizer`. The images are not needed."""
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=list(_PRODUCTS),
            nodes_to_exclude=list(in_float),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )

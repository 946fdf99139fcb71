"""int8 of OpenVINO's representation, by NNCF: linear layers and convolutions, weights by output and activations by tensor.

Not used are NNCF's SmoothQuant and its correction of biases: on a trained model of ours their logits were 18 and 3 times as far
from fp32's (dev/LOG.md).
"""

# B batch · C channels · H W image

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nncf
import openvino
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitrail.deploy.export.quiet import quiet
from vitrail.deploy.export.to_openvino import in_own_thread

METHOD = "NNCF, static: weights by output, activations by tensor"
CALIBRATED = True
_BATCH = 10
_PRODUCTS = ("MatMul", "Convolution")


def weights(source: Path) -> dict[str, NDArray[Any]]:
    """Return the weights of the products of a file, by operation."""
    return {name: constant.data for name, constant in _products(openvino.Core().read_model(source)) if constant is not None}


def quantize(source: Path, path: Path, images: Float[Tensor, "B C H W"], *, in_float: Sequence[str]) -> None:
    """See `Quantizer`. Products of two activations, as in attention, stay in float."""
    model = openvino.Core().read_model(source)
    between = [name for name, constant in _products(model) if constant is None]
    batches = [batch.numpy() for batch in images.split(_BATCH)]
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True, smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    )
    scope = nncf.IgnoredScope(names=[*in_float, *between], types=["ScaledDotProductAttention"], validate=False)
    with quiet():
        quantized = in_own_thread(
            lambda: nncf.quantize(
                model,
                nncf.Dataset(batches),
                subset_size=len(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=scope,
                advanced_parameters=advanced,
            )
        )
    openvino.save_model(quantized, path, compress_to_fp16=False)


def _products(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of each product and the constant of its weights, None where both sides are activations."""
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _PRODUCTS:
            second = operation.input_value(1).get_node()
            yield operation.get_friendly_name(), second if second.get_type_name() == "Constant" else None

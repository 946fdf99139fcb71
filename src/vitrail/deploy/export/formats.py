"""The table of export formats: the file of each, what writes and opens it, and what it needs.

The command line reads this table. A row names its module instead of importing it, so the table needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from vitrail.settings import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from vitrail.deploy.export.trace import Traced
    from vitrail.deploy.forms import Forward


@runtime_checkable
class Writer(Protocol):
    """Module of a format."""

    def write(self, traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file of a traced model, with metadata in it."""

    def open_forward(self, path: Path) -> Forward:
        """Open a file: images of `Traced.inputs` to fp32 logits (B, K), computed in fp32 on the CPU."""

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Return the metadata of a file."""


@runtime_checkable
class Quantizer(Protocol):
    """Module that writes a format's file in int8."""

    METHOD: str
    """Description, for contract.json."""
    CALIBRATED: bool
    """True if it takes the ranges of activations from images."""

    def weights(self, source: Path) -> dict[str, NDArray[Any]]:
        """Return the weights of the operations of a file that can be in int8, by name."""

    def quantize(self, source: Path, path: Path, images: Tensor, *, in_float: Sequence[str]) -> None:
        """Write `path`, the file `source` with int8 products, calibrated on images; the operations `in_float` stay in float."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of an exported model."""

    file: str
    """Name of the model's file in the folder of the export."""
    module: str
    """Module of `write`, `open_forward` and `read_metadata`: see `Writer`."""
    packages: tuple[str, ...]
    """Packages that it needs, of the extra `export`."""
    shows: str
    """Description, in one line."""
    raw_images: bool = False
    """True if the file always takes decoded images."""
    page: str | None = None
    """Function that writes a web page beside the model, as "module:name"; None: the format has none."""
    server: str | None = None
    """Function that writes a model server's configuration beside the model, as "module:name"; None: the format has none."""
    quantizer: str | None = None
    """Module of `quantize`: see `Quantizer`; None: the format has no int8."""
    quantizer_packages: tuple[str, ...] = ()
    """Packages that int8 needs too."""

    def load(self) -> Writer:
        """Import the module. Raises ValueError, which names the extra, where a package is missing."""
        from vitrail.models.machine import missing  # which imports torch

        if reason := missing(self.packages):
            raise ValueError(f"{reason}, which this export needs; install them: pip install 'vitrail[export]'")
        writer: Writer = importlib.import_module(self.module)
        return writer

    def check_options(self, *, dynamic_size: bool, raw_images: bool, int8: bool, runtime: str | Path | None) -> None:
        """Raise ValueError for options that contradict each other."""
        if int8 and (raw_images or self.raw_images):
            raise ValueError("--int8 is for files that take normalised images; leave --raw-images or --int8 out")
        if dynamic_size and (raw_images or self.raw_images):
            raise ValueError("--dynamic size is for normalised images: decoded ones have any size already; leave it out")
        if runtime is not None and self.page is None:
            raise ValueError(f"--runtime {runtime} is for a web page; leave it out, or take --to web")


FORMATS: dict[str, Format] = {
    "onnx": Format(
        file="model.onnx",
        module="vitrail.deploy.export.to_onnx",
        packages=("onnx", "onnxscript", "onnxruntime"),
        shows="an ONNX file, for onnxruntime and whatever else reads ONNX",
        quantizer="vitrail.deploy.export.int8_onnx",
    ),
    "openvino": Format(
        file="model.xml",
        module="vitrail.deploy.export.to_openvino",
        packages=("openvino",),
        shows="OpenVINO's model.xml and model.bin, the fastest on most CPUs",
        quantizer="vitrail.deploy.export.int8_openvino",
        quantizer_packages=("nncf",),
    ),
    "torch": Format(
        file="model.pt2",
        module="vitrail.deploy.export.to_torch",
        packages=(),
        shows="a program of torch.export, which torch loads without Vitrail",
    ),
    "aoti": Format(
        file="model.pt2",
        module="vitrail.deploy.export.to_aoti",
        packages=(),
        shows="the same, compiled for this kind of processor; takes minutes and a C++ compiler",
    ),
    "web": Format(
        file="model.onnx",
        module="vitrail.deploy.export.to_onnx",
        packages=("onnx", "onnxscript", "onnxruntime"),
        shows="an ONNX file with a page that runs it in the browser, for a web server of any kind",
        raw_images=True,
        page="vitrail.deploy.export.to_web:write_page",
    ),
    "triton": Format(
        file="1/model.onnx",
        module="vitrail.deploy.export.to_onnx",
        packages=("onnx", "onnxscript", "onnxruntime"),
        shows="a model of Triton Inference Server: config.pbtxt, and an ONNX file as its version 1",
        server="vitrail.deploy.export.model_servers:write_triton",
    ),
    "ovms": Format(
        file="1/model.xml",
        module="vitrail.deploy.export.to_openvino",
        packages=("openvino",),
        shows="a model of OpenVINO Model Server: config.json, and OpenVINO's files as its version 1",
        server="vitrail.deploy.export.model_servers:write_ovms",
    ),
}
"""Every format by its name, as in `--to`."""


def load(function: str) -> Callable[..., Any]:
    """Import a function from "module:name"."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def format_of(name: str) -> Format:
    """Return the row of a name. Raises ValueError for another one."""
    if name not in FORMATS:
        raise ValueError(f'format "{name}" is none of {", ".join(FORMATS)}{nearest(name, list(FORMATS))}')
    return FORMATS[name]


def overview() -> str:
    """Return a line for each format, with what it is."""
    return "\n".join(f"  {name:<10}{row.shows}" for name, row in FORMATS.items())

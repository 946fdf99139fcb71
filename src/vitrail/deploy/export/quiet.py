"""Exporters without their progress and notes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = (
    "root",
    "torch.onnx",
    "torch.export",
    "torch._inductor",
    "torch.utils.cpp_extension",
    "onnxscript",
    "onnx_ir",
    "openvino",
    "nncf",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's progress and its loggers' notes to itself."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

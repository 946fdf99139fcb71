"""Exporters without their progress and notes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print, log and warn of to themselves; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # OpenVINO's decoder logs tracebacks to the root
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)

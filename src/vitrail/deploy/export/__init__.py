"""Exports: a model in a file that needs no Vitrail, with a contract measured against the original."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vitrail.deploy.export.formats import FORMATS, Format

if TYPE_CHECKING:
    from vitrail.deploy.export.contract import Contract, Limits
    from vitrail.deploy.export.run import Exported, export

__all__ = ["FORMATS", "Contract", "Exported", "Format", "Limits", "export"]

_FILES = {"Contract": "contract", "Exported": "run", "Limits": "contract", "export": "run"}


def __getattr__(name: str) -> object:  # the command line reads the table of formats without torch
    if name not in _FILES:
        raise AttributeError(f"module 'vitrail.deploy.export' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vitrail.deploy.export.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

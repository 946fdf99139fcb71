"""Modules that contenders share, for the server that their processes fork from: importing this file loads them."""

from __future__ import annotations

import contextlib
import importlib

import vitrail.bench.prediction
import vitrail.bench.training  # noqa: F401

for name in ("timm", "torchvision"):
    with contextlib.suppress(Exception):  # not installed, or broken: its contender says so
        importlib.import_module(name)

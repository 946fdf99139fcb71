"""Programs of torch.export: a graph that torch loads without the code of the model."""

# B batch · K classes

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vitrail.deploy.export.quiet import quiet
from vitrail.deploy.export.trace import Traced
from vitrail.deploy.forms import Forward


def write(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a .pt2 file. The metadata are its extra files."""
    with quiet():
        torch.export.save(traced.program, path, extra_files=dict(metadata))


def open_forward(path: Path) -> Forward:
    """Load a .pt2 file."""
    with quiet():
        module = torch.export.load(path).module()

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return forward


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file."""
    files = dict.fromkeys(("vitrail.card", "vitrail.sha256"), "")
    with quiet():
        torch.export.load(path, extra_files=files)
    return {name: value.decode() if isinstance(value, bytes) else str(value) for name, value in files.items()}

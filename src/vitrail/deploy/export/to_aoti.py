"""Packages of AOTInductor: the graph compiled to machine code, for this kind of processor, which torch loads."""

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
    """Compile and write a .pt2 package. Raises ValueError where no C++ compiler works."""
    options = {"aot_inductor.metadata": dict(metadata), "aot_inductor.package": True}
    try:
        with quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(traced.program, package_path=path.as_posix(), inductor_configs=options)
    except torch._inductor.exc.InductorError as error:
        if "compiler" not in str(error).lower():
            raise
        raise ValueError("the aoti export compiles C++, and no compiler works here; install g++, or take --to torch") from error


def open_forward(path: Path) -> Forward:
    """Load a package."""
    with quiet():
        compiled = torch._inductor.aoti_load_package(path.as_posix())

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = compiled(images)
        return logits

    return forward


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a package."""
    with quiet():
        entries: dict[str, str] = torch._inductor.aoti_load_package(path.as_posix()).get_metadata()
    return {key: value for key, value in entries.items() if key.startswith("vitrail.")}

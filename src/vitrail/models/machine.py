"""Facts of a machine that a measurement or a training depends on; nothing that names a host or a path."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from vitrail.models.device import processor

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def facts(*packages: str) -> dict[str, str | int]:
    """Return processor, instructions, cores, the versions of Python, torch and `packages`, and the date."""
    cpu = processor()
    return {
        "cpu": cpu.name,
        "instructions": " ".join(name for name in _INSTRUCTIONS if name in cpu.flags),
        "cores": cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str | None:
    """Return the short hash of the commit of the package's sources, with "+" where they differ from it; None if unknown.

    Known for a clone that Python imports from, as with `pip install -e`.
    """
    sources = Path(__file__).resolve().parents[2]  # src of a clone
    if sources.name != "src" or not (sources.parent / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=sources, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def package_version() -> str:
    """Return the version of the package; "unknown" where it is not installed."""
    try:
        return version("vitrail")
    except PackageNotFoundError:
        return "unknown"


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor().name


def missing(packages: tuple[str, ...]) -> str | None:
    """Return a sentence that names the packages that are not installed; None if all are."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed" if absent else None

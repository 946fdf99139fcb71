"""Facts of a machine that a measurement depends on; nothing that names a host or a path."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
from importlib.metadata import version

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


def missing(packages: tuple[str, ...]) -> str | None:
    """Return a sentence that names the packages that are not installed; None if all are."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed" if absent else None

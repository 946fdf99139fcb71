"""Facts of a machine that a measurement depends on; nothing that names a host or a path."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
from importlib.metadata import version
from pathlib import Path

_TELLING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def facts(*packages: str) -> dict[str, str | int]:
    """Return processor, instructions, cores, the versions of Python, torch and `packages`, and the date."""
    model, flags = processor()
    return {
        "cpu": model,
        "instructions": " ".join(name for name in _TELLING if name in flags),
        "cores": cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def processor() -> tuple[str, frozenset[str]]:
    """Return the processor's name and its flags, as Linux has them; elsewhere the name only."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return told.get("model name", platform.processor() or platform.machine()), frozenset(told.get("flags", "").split())


def cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing(packages: tuple[str, ...]) -> str | None:
    """Return a sentence that names the packages that are not installed; None if all are."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed" if absent else None

"""What a figure was measured on: enough to judge it, nothing that names a host or a path."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_TELLING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def facts(*packages: str) -> dict[str, str | int]:
    """The processor, the cores this process may use, the versions of Python, torch and `packages`, date and commit."""
    model, flags = processor()
    return {
        "cpu": model,
        "instructions": " ".join(name for name in _TELLING if name in flags),
        "cores": cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", *packages)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
    }


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its flags, both as Linux tells them; elsewhere the name only."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return told.get("model name", platform.processor() or platform.machine()), frozenset(told.get("flags", "").split())


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The short hash of HEAD, with "+" where tracked source files differ from it; "unknown" outside a clone."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

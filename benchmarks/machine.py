"""What a figure was measured on: the package's facts of a machine, and the commit of the sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vitrail.bench import machine
from vitrail.bench.machine import cores as cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def facts(*packages: str) -> dict[str, str | int]:
    """The processor, the cores this process may use, the versions of Python, torch and `packages`, date and commit."""
    return {**machine.facts(*packages), "commit": commit()}


def commit() -> str:
    """The short hash of HEAD, with "+" where tracked source files differ from it; "unknown" outside a clone."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

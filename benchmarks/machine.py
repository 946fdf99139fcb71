"""What a figure was measured on: the package's facts of a machine, and the commit of the sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitrail.models import machine
from vitrail.models.machine import cores as cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Variables that make torch's kernels and oneDNN's use AVX2 alone. MKL is not bound by them."""
INSTRUCTIONS: dict[str, dict[str, str]] = {"as it is": {}, "AVX2 alone": AVX2}


def with_instructions(script: str, words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Run a script with each of `INSTRUCTIONS`. Yield their name and the JSON of its last line."""
    for name, variables in INSTRUCTIONS.items():
        command, variables = [sys.executable, script, *words], {**os.environ, **variables}
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
        yield name, json.loads(done.stdout.splitlines()[-1])


def facts(*packages: str) -> dict[str, str | int]:
    """The processor, the cores this process may use, the versions of Python, torch and `packages`, date and commit."""
    return {**machine.facts(*packages), "commit": commit()}


def commit() -> str:
    """The short hash of HEAD, with "+" where tracked source files differ from it; "unknown" outside a clone."""
    return machine.commit() or "unknown"

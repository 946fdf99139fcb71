"""Type command lines: in this process with the fixture `vitrail` of conftest.py, or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TINY = tuple(
    f"--{key}={value}"
    for key, value in {
        "model.depth": 1,
        "model.embed_dim": 16,
        "model.num_heads": 2,
        "train.steps": 2,
        "train.batch_size": 16,
    }.items()
)


class Said(NamedTuple):
    code: int
    out: str
    err: str


Typed = Callable[..., Said]


def in_a_process(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitrail", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)  # type: ignore[call-overload]

"""Packages of the npm registry, for tests in a browser."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest


def unpack(name: str, folder: Path) -> Path:
    """Fetch a package and unpack it. Return its folder; the test is skipped without npm or its registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm; on Debian: apt-get install npm")
    done = subprocess.run([npm, "pack", name], cwd=folder, check=False, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.skip(f"npm pack {name} failed: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as packed:
        packed.extractall(folder, filter="data")
    return folder / "package"

"""Runs that are served."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import make_run, served

from vitrail.serve.models import ServedModel


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five classes, calibrated."""
    return make_run(tmp_path_factory.mktemp("served") / "animals")


@pytest.fixture(scope="session")
def model(animals: Path) -> ServedModel:
    """The same, served."""
    return served(animals)

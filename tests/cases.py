"""Parameters of tests: the first cases run always, the others with the slow tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ImageFolder = Callable[..., Path]
"""Makes a folder of images from the number of images of each class, by split: the fixture `image_folder`."""


def some_slow(cases: Iterable[Any], *, fast: int = 1) -> list[Any]:
    """Mark all cases but the first `fast` ones as slow."""
    return [case if at < fast else pytest.param(case, marks=pytest.mark.slow) for at, case in enumerate(cases)]

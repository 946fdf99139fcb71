"""Ctrl-C at a step of a training run."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from vitrail.train.loop import Loop


def interrupt_at(patched: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGINT behind a step of every run, until the patches are undone."""
    log = Loop.log

    def log_and_interrupt(loop: Loop, *args: Any, **numbers: Any) -> None:
        log(loop, *args, **numbers)
        if loop.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    patched.setattr("vitrail.train.loop.LOG_EVERY_S", 0.0)
    patched.setattr(Loop, "log", log_and_interrupt)

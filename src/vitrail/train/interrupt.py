"""Signals that interrupt a run between two steps, and what they raise."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

PATIENCE_S = 1.0
"""Seconds after which a second Ctrl-C counts as a new one."""


class Interrupted(KeyboardInterrupt):
    """A run was interrupted by a signal, and has saved a checkpoint."""

    def __init__(self, *text: str, number: int) -> None:
        super().__init__(*text)
        self.number = number


class Interrupt:
    """Context that records Ctrl-C, SIGTERM and SIGUSR1, to interrupt between two steps; a second Ctrl-C interrupts at once.

    Schedulers send the latter two some time before they kill: SLURM the signal of `--signal`, Kubernetes SIGTERM. One signal
    may arrive twice, from the scheduler and forwarded by torchrun: within `PATIENCE_S` the second is ignored.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self.number = 0
        """Number of the first signal; 0 for none."""
        self.since = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            self._previous_handlers = {number: signal.signal(number, self._record) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > PATIENCE_S:
            raise KeyboardInterrupt

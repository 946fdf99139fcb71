"""Length of a run: in steps, or fitted to a time budget; and its progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CALIBRATION_SHARE = 0.03
"""Share of the time budget before the first fit of the steps."""
CALIBRATION_STEPS = 8
"""Least number of measured steps before the first fit; the first steps are slower, and not measured."""
REFIT_SHARE = 0.1
"""Share of the time budget, or of the remaining steps, between two fits: whichever comes first."""


@dataclass
class Pace:
    """Length and progress of a run. `progress` goes from 0 to 1, and schedules depend on nothing else.

    With `seconds`, the number of steps is fitted to them after a short calibration, and again after every tenth of the rest, so
    that a run with a slow evaluation or on a slowing machine still ends on time and annealed. Progress is continuous over a
    fit. Fits are part of the state: a resumed run continues its schedule.
    """

    steps: int | None
    seconds: float | None = None
    fits: list[tuple[int, float, int]] = field(default_factory=list)
    """(step, progress at that step, total steps) of each fit."""
    elapsed: float = 0.0
    """Seconds of training so far."""
    measured: tuple[int, float] | None = None
    """(step, seconds) at which the measurement of the pace starts; None while the first steps warm up."""
    resumed: bool = field(default=False, compare=False)
    """True before the first step of a resumed run, which warms up again and is not measured."""

    def __post_init__(self) -> None:
        assert (self.steps is None) == (self.seconds is not None)

    @property
    def total(self) -> int | None:
        """Total number of steps; None before the first fit."""
        return self.fits[-1][2] if self.fits else self.steps

    def progress(self, step: float) -> float:
        """Return the progress at a step, from 0 before the first to 1 after the last."""
        if not self.fits:
            if self.steps is not None:
                return step / self.steps
            assert self.seconds is not None
            return min(CALIBRATION_SHARE, self.elapsed / self.seconds)
        start, done, total = self.fits[-1]
        return min(1.0, done + (1 - done) * (step - start) / max(1, total - start))

    def finished(self, step: int) -> bool:
        """Return True if `step` is the total number of steps."""
        return self.total is not None and step >= self.total

    def advance(self, step: int, elapsed: float) -> bool:
        """Record the time after `step` steps. Return True if the total number of steps was fitted again."""
        warming_s, warming = elapsed - self.elapsed, self.resumed
        self.elapsed, self.resumed = elapsed, False
        if self.seconds is None or self.finished(step):
            return False
        if warming and self.measured is not None:
            first, since = self.measured
            self.measured = (first + 1, since + warming_s)
            return False
        if self.measured is None:
            if step >= 2:  # the first steps warm up caches and threads
                self.measured = (step, elapsed)
            return False
        first, since = self.measured
        enough = step - first >= CALIBRATION_STEPS and elapsed >= CALIBRATION_SHARE * self.seconds
        if not self.fits and not (enough or elapsed >= self.seconds / 4):
            return False
        if (
            self.fits
            and elapsed - since < REFIT_SHARE * self.seconds
            and step - first < REFIT_SHARE * (self.fits[-1][2] - first)
        ):
            return False
        pace = (elapsed - since) / max(1, step - first)
        total = step + max(1, round((self.seconds - elapsed) / pace)) if elapsed < self.seconds else step + 1
        self.fits.append((step, self.progress(step), total))
        self.measured = (step, elapsed)
        return True

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        state = {"steps": self.steps, "seconds": self.seconds, "fits": self.fits, "elapsed": self.elapsed}
        return {**state, "measured": self.measured}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Pace:
        """Build the pace of a resumed run from its state."""
        fits = [(a, b, c) for a, b, c in state["fits"]]
        measured = state.get("measured")  # older checkpoints lack it: the measurement restarts
        return cls(
            state["steps"],
            state["seconds"],
            fits,
            state["elapsed"],
            None if measured is None else (measured[0], measured[1]),
            resumed=True,
        )

"""How long a run is: steps given, counted from epochs, or fitted to minutes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CALIBRATION_SHARE = 0.03
"""Share of the minutes after which the steps are fitted to them for the first time."""
CALIBRATION_STEPS = 8
"""Steps measured at least: the first are slower than the rest, and not counted."""
REFIT_SHARE = 0.1
"""Share of the minutes, or of the steps still to do, between one fit and the next: whichever comes first."""


@dataclass
class Pace:
    """Where in the run a step is. `progress` goes from 0 to 1, and the schedule depends on nothing else.

    With `seconds`, the steps that fit into them are estimated from a short calibration, and again every tenth of what
    is left, so that a machine that slows down or an evaluation that takes long still ends on time and annealed. Each fit
    continues the progress where it stood. Fits are part of the state: a resumed run goes on with its schedule.
    """

    steps: int | None
    seconds: float | None = None
    fits: list[tuple[int, float, int]] = field(default_factory=list)
    """(step, progress at that step, steps in all) of each fit."""
    elapsed: float = 0.0
    """Seconds of training behind the run."""
    measured: tuple[int, float] | None = None
    """(step, seconds) from which on the pace is measured; None while the first steps warm up."""
    resumed: bool = field(default=False, compare=False)
    """Whether the next step is the first of a process that goes on with the run: it warms up again, and is not measured."""

    def __post_init__(self) -> None:
        assert (self.steps is None) == (self.seconds is not None)

    @property
    def total(self) -> int | None:
        """Steps in all, as far as it is known."""
        return self.fits[-1][2] if self.fits else self.steps

    def progress(self, step: float) -> float:
        """From 0 at the first step to 1 behind the last."""
        if not self.fits:
            if self.steps is not None:
                return step / self.steps
            assert self.seconds is not None
            return min(CALIBRATION_SHARE, self.elapsed / self.seconds)
        start, done, total = self.fits[-1]
        return min(1.0, done + (1 - done) * (step - start) / max(1, total - start))

    def finished(self, step: int) -> bool:
        """Whether `step` steps are all there are."""
        return self.total is not None and step >= self.total

    def advance(self, step: int, elapsed: float) -> bool:
        """Takes note of the time after `step` steps; says whether the steps in all were fitted anew."""
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
        """What a checkpoint holds of it."""
        state = {"steps": self.steps, "seconds": self.seconds, "fits": self.fits, "elapsed": self.elapsed}
        return {**state, "measured": self.measured}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Pace:
        """The pace that `state` was taken of, which goes on in another process."""
        fits = [(a, b, c) for a, b, c in state["fits"]]
        measured = state.get("measured")  # checkpoints of before it was kept begin to measure anew
        return cls(
            state["steps"],
            state["seconds"],
            fits,
            state["elapsed"],
            None if measured is None else (measured[0], measured[1]),
            resumed=True,
        )

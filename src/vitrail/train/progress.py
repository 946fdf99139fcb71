"""Progress of a run: a live bar on a terminal, plain lines elsewhere, and metrics.jsonl always."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from vitrail.console import PlainConsole
from vitrail.text import printable

LINES = 20
"""Progress lines of a run where the output is no terminal."""


@runtime_checkable
class BoardWriter(Protocol):
    """Interface of TensorBoard's SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Add one point to a curve."""

    def close(self) -> None:
        """Write pending events and close the file."""


class Metrics:
    """Log of metrics.jsonl, one JSON object with its step per line, and of TensorBoard curves where it is installed."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = tensorboard(folder)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line; a non-finite number becomes null, for JSON has none."""
        nulls = {name: None for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **values, **nulls}, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def tensorboard(folder: Path) -> BoardWriter | None:
    """Return a writer to folder/tensorboard; None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard")


def truncate_metrics(folder: Path, *, step: int, evaluated: int) -> None:
    """Delete the lines after `step`, and the scores after step `evaluated`: a resumed run writes them again.

    A line cut short by a crash is deleted as well.
    """
    path = folder / "metrics.jsonl"
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            if record["step"] <= (evaluated if any(name.startswith("val_") for name in record) else step):
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    draft = path.with_suffix(".part")
    draft.write_text("".join(kept), encoding="utf-8")
    os.replace(draft, path)


class Display:
    """Live bar with remaining time, loss, accuracy and images/s; `LINES` plain lines where the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole()
        self._live = self.console.is_terminal
        self._bar = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            auto_refresh=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("starting", total=1.0)
        self._printed = -1
        self.lines: list[str] = []
        """Lines that `say` printed."""

    def __enter__(self) -> Display:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._bar.stop()

    def show(self, *, step: int, total: int | None, progress: float, left_s: float | None, values: Mapping[str, float]) -> None:
        """Show the progress of the run; `values` are printed in their order."""
        steps = f"step {step:,}" + (f" of {total:,}" if total is not None else "")
        numbers = [f"{name.replace('_', ' ')} {figure(value)}" for name, value in values.items()]
        text = " · ".join([steps, *numbers, *([f"{duration(left_s)} left"] if left_s is not None else [])])
        if self._live:
            self._bar.update(self._task, completed=progress, description=text)
        elif int(progress * LINES) > self._printed:
            self._printed = int(progress * LINES)
            self.console.print(f"{progress:4.0%}  {text}", soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.lines.append(text)
        self.console.print(printable(text), soft_wrap=True, markup=False, emoji=False, highlight=False)


def figure(value: float) -> str:
    """Format a number to three significant digits: 0.873, 12.5, 1,234."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Format seconds: 43 s, 5 min 20 s, 2 h 05 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class Rate:
    """Images per second over the last ten seconds."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = [(time.perf_counter(), 0)]

    def add(self, images: int) -> float:
        """Record one step. Return the rate."""
        now = time.perf_counter()
        self._marks.append((now, self._marks[-1][1] + images))
        while len(self._marks) > 2 and now - self._marks[0][0] > 10:
            self._marks.pop(0)
        (since, before), (_, done) = self._marks[0], self._marks[-1]
        return (done - before) / max(1e-9, now - since)

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from vitrail.train.progress import Display, Metrics, duration, figure, truncate_metrics


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (43.4, "43 s"),
        (59.7, "1 min 00 s"),
        (320, "5 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86400 * 3 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.8731, "0.873"), (12.46, "12.5"), (1234.4, "1,234"), (-0.5, "-0.500")])
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=False, width=20)) as display:
        for step in range(1, 1001):
            display.show(
                step=step, total=1000, progress=step / 1000, left_s=1000 - step, values={"loss": 0.5, "images/s": 1500}
            )
        display.say("done")
    lines = out.getvalue().splitlines()
    assert len(lines) == 22
    assert lines[-2] == "100%  step 1,000 of 1,000 · loss 0.500 · images/s 1,500 · 0 s left"
    assert lines[-1] == "done"
    assert "\x1b" not in out.getvalue()


def test_a_live_bar_on_a_terminal() -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=120)) as display:
        display.show(step=5, total=None, progress=0.5, left_s=None, values={"loss": 2.25})
        display.say("a line that stays")
        display._bar.refresh()
    assert "50%" in out.getvalue()
    assert "step 5 · loss 2.250" in out.getvalue()
    assert "a line that stays" in out.getvalue()


def test_lines_behind_the_step_and_broken_ones_are_dropped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 0.5})
    metrics.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"loss": 1}\n{"step": 2, "lo')
    truncate_metrics(tmp_path, step=2, evaluated=0)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    again = Metrics(tmp_path)
    again.write(3, {"loss": 0.25})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert not (tmp_path / "metrics.part").exists()


def test_scores_that_a_resumed_run_writes_again_are_dropped(tmp_path: Path) -> None:
    """The checkpoint was written at the step of an evaluation, but before it."""
    for evaluated, kept in ((2, [2, 2, 4]), (4, [2, 2, 4, 4])):
        metrics = Metrics(tmp_path)
        for step in (2, 4, 6):
            metrics.write(step, {"loss": 0.5})
            metrics.write(step, {"val_top1": 0.5})
        metrics.close()
        truncate_metrics(tmp_path, step=4, evaluated=evaluated)
        path = tmp_path / "metrics.jsonl"
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept
        path.unlink()


def test_a_run_without_metrics_so_far(tmp_path: Path) -> None:
    truncate_metrics(tmp_path, step=2, evaluated=0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""

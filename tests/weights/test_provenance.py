"""Provenance of a run: what is written is read, and older runs have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitrail.models import machine
from vitrail.weights.provenance import PROVENANCE, Provenance, read_provenance, start_now, write_provenance
from vitrail.weights.run_log import points, read_records


def test_what_is_written_is_read(tmp_path: Path) -> None:
    start = start_now(torch.device("cpu"), step=7, processes=2)
    assert (start.step, start.processes, start.device) == (7, 2, machine.processor().name)
    assert start.torch == torch.__version__.partition("+")[0] or start.torch == torch.__version__
    written = Provenance(
        notes=("naïve \u2028 note",),
        starts=(start,),
        ended="2026-01-01",
        steps=9,
        seconds=1.5,
        images={"train": 3},
        class_counts=(1, 2),
    )
    write_provenance(tmp_path, written)
    assert read_provenance(tmp_path) == written


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"starts": [{}]}', '{"starts": [], "unknown": 1}'])
def test_a_missing_or_damaged_record_is_empty(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / PROVENANCE).write_text(text)
    assert read_provenance(tmp_path) == Provenance()


def test_the_commit_is_that_of_a_clone_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "other" / "lib" / "site-packages" / "vitrail" / "models" / "machine.py"
    inside.parent.mkdir(parents=True)
    (tmp_path / "other" / ".git").mkdir()  # somebody's own repository around a virtual environment
    monkeypatch.setattr(machine, "__file__", str(inside))
    assert machine.commit() is None


def test_a_log_is_read_line_by_line(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    records = read_records(tmp_path)
    assert points(records, "loss") == [(1, 2.0)]
    assert points(records, "lr") == []

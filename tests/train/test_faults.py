"""Faults that are done for real, through the command line: a quick form of benchmarks/faults.py, which does each many times."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc"),
]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
QUICK = ("sigterm-evaluation", "sigusr1-save", "broken")


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("faults")


@pytest.fixture(scope="module")
def ground(faults: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = faults.Ground(tmp_path_factory.mktemp("faults"), epochs=8)
    try:
        made.whole()
        yield made
    finally:
        made.close()


def survive(faults: ModuleType, ground: Any, name: str, *, tries: int) -> None:
    """Does a fault, and holds that all came true."""
    rows = list(faults.FAULTS[name].rows(ground, tries, random.Random(name)))
    if not all(row["tries"] for row in rows):
        pytest.skip(rows[0]["said"])
    assert [wrong for row in rows for wrong in row["wrong"]] == []
    assert [row["held"] for row in rows] == [row["tries"] for row in rows]


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_lost(faults: ModuleType, ground: Any, name: str) -> None:
    survive(faults, ground, name, tries=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tries"),
    [
        ("killed", 1),
        ("boundaries", 2),
        ("sigterm", 1),
        ("loader", 1),
        ("disk", 1),
        ("shared-memory", 1),
        ("rank", 2),
        ("poison", 1),
    ],
)
def test_nothing_is_lost_at_length(faults: ModuleType, ground: Any, name: str, tries: int) -> None:
    survive(faults, ground, name, tries=tries)


def test_what_did_not_hold_is_told(faults: ModuleType, tmp_path: Path) -> None:
    """A harness that finds nothing would be worth nothing: a run that became another one is counted and named."""
    ground = faults.Ground(tmp_path, epochs=1)
    out, tried = tmp_path / "run", faults.Try(code=137, said=f"vitrail: step 7 is saved; `vitrail resume {tmp_path / 'run'}`")
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"other weights")
    (out / "evaluation.json").write_bytes(b"{}")
    (out / "metrics.jsonl").write_text('{"step": 1, "val_top1": 0.5}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    assert faults.last_step(out) == 2, "a line that is half written counts for nothing"
    (out / "metrics.jsonl").write_text('{"step": 1, "val_top1": 0.5}\n')
    ground._whole[faults.ALONE] = faults.Whole((b"weights", b"{}", b'[{"step": 1, "val_top1": 0.5}]'), 1.0)
    ground.compare(tried, out, faults.ALONE)
    tried.seconds = 11.0
    held = faults.Try(end="identical", seconds=1.0)
    made = faults.row(ground, "a fault", [(out, tried), (out, held)], bar_s=10.0)
    assert (made["tries"], made["held"], made["ends"], made["codes"]) == (2, 1, {"identical": 1, "differs": 1}, {"137": 1})
    assert made["wrong"] == ["model.safetensors differs", "it took more than 10 s"]
    assert made["said"] == "vitrail: step … is saved; `vitrail resume RUN`"
    table = importlib.import_module("tables").faults(
        {
            "faults": {"one": [made, faults.left_out("another", "not tried: takes root")]},
            "machines": {"one": {"cpu": "CPU", "cores": 2, "torch": "2.14.1", "date": "2026-01-01", "commit": "abc"}},
        }
    )
    said = "`vitrail: step … is saved; 'vitrail resume RUN'`"
    assert f"| a fault | **1 of 2** | 137 | {said} | 1 identical, 1 differs | 11.0 |" in table
    assert "| another | none |  | not tried: takes root |  |  |" in table

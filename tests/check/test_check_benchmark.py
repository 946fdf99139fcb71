"""The benchmark of `check`, on a toy: what is planted, how it is counted, and its tables."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from planted import photo

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MACHINE = {"cpu": "CPU", "cores": 2, "torch": "2.14.1", "date": "2026-01-01", "commit": "abc"}


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    for number in range(180):
        photo(number).save(tmp_path / f"{number}.jpg", quality=92)
    return sorted(tmp_path.glob("*.jpg"))


def test_near_duplicates_and_faults_are_counted(
    photos: list[Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, tables = load("check", monkeypatch), load("tables", monkeypatch)
    monkeypatch.setattr(bench, "PLANTED", 18)
    monkeypatch.setattr(bench, "FAULTS", 2)
    folder = tmp_path_factory.mktemp("near")
    expected = bench.plant_near(photos[:60], folder)
    assert len(expected) == 18
    row = bench.near_row(bench.ours(folder), expected, 60)
    assert row["recall of all"] >= 0.9
    assert row["others named"] == 0
    none = bench.near_row({"groups": [["0.jpg", "1.jpg"]], "seconds": 1.0}, expected, 60)
    assert (none["recall of all"], none["others named"]) == (0, round(2 / 60, 5))
    planted = bench.plant_faults(photos, tmp_path_factory.mktemp("faults"))
    assert {kind: len(names) for kind, names in planted.items()} == {
        **dict.fromkeys(("truncated", "not-an-image", "extension", "blank", "dark", "blurred"), 2),
        "exact-duplicate": 4,
    }
    near = {"photographs": {"images": 60, "planted": 18, "vitrail": row}, "machine": MACHINE}
    assert "| **found, all** | **100.0 %** |" in tables.check_near({"near": near})
    kinds = {kind: {"found": 2, "others": 0} for kind in planted}
    counts = {kind: len(names) for kind, names in planted.items()}
    table = tables.check_faults(
        {"faults": {"images": 180, "planted": counts, "vitrail": {**kinds, "seconds": 3, "error": ""}, "machine": MACHINE}}
    )
    assert "| dark | 2 | 2 (0 others) |" in table
    for name in ("near", "faults", "speed", "labels"):
        assert "Not measured yet" in getattr(tables, f"check_{name}")({})

"""The log of a run, metrics.jsonl: its lines, and the values of one name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
Records = Sequence[Mapping[str, Any]]


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a line cut short is left out."""
    path, records = folder / METRICS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def points(records: Records, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of all records that have a value of this name."""
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]

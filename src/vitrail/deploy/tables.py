"""File formats of embeddings: Parquet with its own metadata, or an array with a table and metadata beside it."""

# N images · B rows of a group

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.deploy.draft import Draft

GROUP_BYTES = 32e6
"""Size of a Parquet row group's embeddings: what writing and reading one needs in memory."""
GROUP_ROWS = 10_000
METADATA = "vitrail"
"""Key of the metadata in a Parquet schema."""


@dataclass(frozen=True)
class Columns:
    """Columns beside the embeddings: path, label and error of each image."""

    paths: Sequence[str]
    labels: Sequence[str | None]
    failed: Mapping[int, str]
    """Reason for each row without an embedding."""
    metadata: Mapping[str, Any]

    def rows(self, start: int, stop: int) -> list[tuple[str, str | None, str | None]]:
        """Return path, label and error of some rows; bytes of a path that are no UTF-8 are escaped."""
        return [(_text(self.paths[row]), self.labels[row], self.failed.get(row)) for row in range(start, stop)]


@dataclass(frozen=True)
class Format:
    """One file format."""

    files: Callable[[Path], tuple[Path, ...]]
    """The file's path to all files that are written."""
    write: Callable[[Draft, Path, Columns], None]
    """Finish a complete draft at a path."""
    require: Callable[[Path], None] = lambda out: None
    """Raise ValueError if a package is missing."""


def write_npy(draft: Draft, out: Path, columns: Columns) -> None:
    """Write the array, with NaN where a row failed, and .csv (path, label, error) and .json beside it."""
    table, info = draft.folder / "table.csv", draft.folder / "info.json"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "error"])
        writer.writerows(columns.rows(0, len(columns.paths)))
    info.write_text(json.dumps(dict(columns.metadata), indent=2) + "\n", encoding="utf-8")
    _, csv_place, json_place = npy_files(out)
    draft.publish({table: csv_place, info: json_place, draft.array_file: out})


def npy_files(out: Path) -> tuple[Path, ...]:
    """Return the array's path, and those of the table and the metadata beside it."""
    return out, out.with_suffix(".csv"), out.with_suffix(".json")


def write_parquet(draft: Draft, out: Path, columns: Columns) -> None:
    """Write path, label, embedding (fixed-size lists) and error, row group by row group.

    The embedding of a row that failed is NaN, as in an array: most versions of pyarrow can't read a null among such lists.
    """
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    values = draft.array()
    kind = fixed_size_lists(values[:0]).type
    fields = [("path", pa.string()), ("label", pa.string()), ("embedding", kind), ("error", pa.string())]
    schema = pa.schema(fields, metadata={METADATA: json.dumps(dict(columns.metadata))})
    size = max(1, min(GROUP_ROWS, int(GROUP_BYTES // max(1, values[:1].nbytes))))
    part = draft.folder / "table.parquet"
    with parquet.ParquetWriter(part, schema) as writer:
        for start in range(0, len(values), size):
            stop = min(start + size, len(values))
            paths, labels, errors = zip(*columns.rows(start, stop), strict=True)
            embeddings = fixed_size_lists(np.asarray(values[start:stop]))
            arrays = [pa.array(paths, pa.string()), pa.array(labels, pa.string()), embeddings, pa.array(errors, pa.string())]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    del values
    draft.publish({part: out})


def fixed_size_lists(values: NDArray[Any]) -> Any:
    """Return (B, …) numbers as a pyarrow array of nested lists of fixed size."""
    pa = importlib.import_module("pyarrow")
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def require_parquet(out: Path) -> None:
    """Raise ValueError if pyarrow is missing."""
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(f'{out.name} needs pyarrow ({error}); pip install "vitrail[parquet]", or name a .npy file') from error


FORMATS: dict[str, Format] = {
    ".parquet": Format(lambda out: (out,), write_parquet, require_parquet),
    ".npy": Format(npy_files, write_npy),
}
"""Formats by suffix."""


def format_of(out: Path) -> Format:
    """Return the format of a path. Raises ValueError for another suffix, and for a missing package."""
    row = FORMATS.get(out.suffix.lower())
    if row is None:
        raise ValueError(f'"{out.name}" ends in neither of {" or ".join(FORMATS)}; name one of them')
    row.require(out)
    return row


def _text(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()

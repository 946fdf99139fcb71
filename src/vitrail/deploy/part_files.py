"""A folder of Parquet or CSV files that many workers write: each is whole or not there, and no image is in two of them."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vitrail.data.listing import mark_output
from vitrail.deploy.draft import changed_settings
from vitrail.deploy.image_chunks import NameSet, digests, file_system, place_of
from vitrail.deploy.tables import METADATA
from vitrail.weights.run_folder import put

SETTINGS = "_vitrail.json"
"""File of the settings that all parts were computed with; readers of Parquet folders skip names with a leading "_"."""
_PREFIX, _DRAFT, _TRIES = "part-", ".part", ".tries"
_MOST_TRIES = 5
_READERS = 8  # files that are read at a time, as storage answers late
_SHOWN = 3


@dataclass(frozen=True)
class Written:
    """Contents of a folder of parts."""

    images: int
    failed: int
    """Images with an error in the place of a result."""
    first_failed: tuple[tuple[str, str], ...]
    """Names and errors of the first of them."""
    files: int


@dataclass(frozen=True)
class PartFolder:
    """The folder, here or behind a URL."""

    place: str
    """Absolute path, or URL."""
    format: str
    """A key of `FORMATS`."""

    @classmethod
    def of(cls, out: str, format: str) -> PartFolder:
        """Return the folder at a path or URL. Raises ValueError for an unknown format."""
        if format not in FORMATS:
            raise ValueError(f'format "{format}" is none of {", ".join(FORMATS)}')
        return cls(place_of(out).rstrip("/"), format)

    def begin(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder, or go on with one. With `overwrite`, remove the parts that are there.

        Raises ValueError for parts of other settings, and for a folder of anything else.
        """
        system, root = file_system(self.place)
        there = [path.rpartition("/")[2] for path in _list(system, root)]
        foreign = [name for name in there if not _is_ours(name)]
        if foreign:
            raise ValueError(f"{self.place} holds other files, such as {foreign[0]}; name another folder")
        if overwrite:
            for name in there:
                system.rm_file(f"{root}/{name}")
        elif SETTINGS in there:
            begun = json.loads(system.cat_file(f"{root}/{SETTINGS}"))
            if changed := changed_settings(begun, settings):
                raise ValueError(
                    f"{self.place} was begun with other settings: {', '.join(changed)}; run the first command again, "
                    "name another folder, or start over with --overwrite"
                )
        system.makedirs(root, exist_ok=True)
        for name in there:
            if name.endswith((_DRAFT, _TRIES)) and not overwrite:  # of a worker that was killed
                system.rm_file(f"{root}/{name}")
        self._write_file(SETTINGS, (json.dumps(dict(settings), indent=2) + "\n").encode())

    def part_name(self, names: Sequence[str]) -> str:
        """Return the name of the part with these images: the same however often they are computed."""
        return f"{_PREFIX}{hashlib.blake2b(digests(names).tobytes(), digest_size=12).hexdigest()}.{self.format}"

    def has(self, part: str) -> bool:
        """Return whether a part is there."""
        system, root = file_system(self.place)
        return bool(system.exists(f"{root}/{part}"))

    def try_again(self, part: str, names: Sequence[str]) -> None:
        """Count the tries of a part. Raises ValueError for one at which several workers have died."""
        system, root = file_system(self.place)
        file = f"{root}/.{part}{_TRIES}"
        tries = int(system.cat_file(file)) if system.exists(file) else 0
        if tries >= _MOST_TRIES:
            raise ValueError(
                f"{tries} workers died at the {len(names)} images from {names[0]} to {names[-1]}: for lack of memory, or one "
                "of these can't be decoded; use a smaller --batch-size, or leave it out"
            )
        system.pipe_file(file, str(tries + 1).encode())

    def write(self, part: str, table: Any) -> None:
        """Write a part, atomically; one of the same name has the same images, and is replaced."""
        self._write_file(part, FORMATS[self.format].encode(table))
        system, root = file_system(self.place)
        with contextlib.suppress(FileNotFoundError):
            system.rm_file(f"{root}/.{part}{_TRIES}")

    def computed(self) -> NameSet:
        """Return the names of all images in the folder. Raises ValueError for a part that can't be read."""
        return NameSet(digests(names) for names, _ in self._columns())

    def summary(self) -> Written:
        """Count what is in the folder. Raises ValueError for an image that is there twice."""
        hashed: list[NDArray[Any]] = []
        failed, first, files = 0, list[tuple[str, str]](), 0
        for names, errors in self._columns():
            files += 1
            hashed.append(digests(names))
            bad = [(name, error) for name, error in zip(names, errors, strict=True) if error]
            failed += len(bad)
            first += bad[: _SHOWN - len(first)]
        there = NameSet(hashed)
        if len(there.repeated):
            raise ValueError(
                f"{self.place} has {len(there.repeated)} images more than once: two commands have written it at a time; start "
                "over with --overwrite"
            )
        return Written(len(there), failed, tuple(first), files)

    def mark(self, command: str) -> None:
        """Record that the files are output and no data, where the folder is a local one."""
        system, root = file_system(self.place)
        if "file" in system.protocol:
            mark_output(Path(root), map(Path, _list(system, root)), command=command)

    def _columns(self) -> Iterator[tuple[Sequence[str], Sequence[str | None]]]:
        """Yield the names and errors of each part."""
        system, root = file_system(self.place)
        parts = sorted(path for path in _list(system, root) if path.rpartition("/")[2].startswith(_PREFIX))

        def read(path: str) -> tuple[Sequence[str], Sequence[str | None]]:
            try:
                with system.open(path) as file:
                    return FORMATS[self.format].names_and_errors(file)
            except Exception as error:  # pyarrow has many
                raise ValueError(f"{path} can't be read ({error}); remove it, and run the command again") from error

        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(read, parts)

    def _write_file(self, name: str, contents: bytes) -> None:
        system, root = file_system(self.place)
        if "file" not in system.protocol:
            system.pipe_file(f"{root}/{name}", contents)  # an object appears when it is complete
            return
        draft = Path(root, f".{name}.{uuid.uuid4().hex}{_DRAFT}")  # another attempt may be writing the same part
        try:
            draft.write_bytes(contents)
            put(draft, Path(root, name))
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def _list(system: Any, root: str) -> list[str]:
    """Return the paths in a folder; none if it does not exist. Raises ValueError for a file."""
    if system.isfile(root):
        raise ValueError(f"{root} is a file; name a folder for the parts")
    with contextlib.suppress(FileNotFoundError):
        system.invalidate_cache()
        return [str(path).rstrip("/") for path in system.ls(root, detail=False) if str(path).rstrip("/") != root.rstrip("/")]
    return []


def _is_ours(name: str) -> bool:
    return name.startswith((_PREFIX, f".{_PREFIX}", SETTINGS, f".{SETTINGS}", ".vitrail-output"))


# --------------------------------------------------------------------------------------------------------------------
# Formats


@dataclass(frozen=True)
class PartFormat:
    """One format of parts."""

    encode: Callable[[Any], bytes]
    """A pyarrow table to the bytes of a file."""
    names_and_errors: Callable[[Any], tuple[Sequence[str], Sequence[str | None]]]
    """Columns `path` and `error` of an open file."""


def _encode_parquet(table: Any) -> bytes:
    buffer = io.BytesIO()
    importlib.import_module("pyarrow.parquet").write_table(table, buffer)
    return buffer.getvalue()


def _read_parquet(file: Any) -> tuple[Sequence[str], Sequence[str | None]]:
    table = importlib.import_module("pyarrow.parquet").read_table(file, columns=["path", "error"])
    return table["path"].to_pylist(), table["error"].to_pylist()


def _encode_csv(table: Any) -> bytes:
    """Encode as `vitrail predict --csv` prints: six decimals, several classes joined by ";", True as 1."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    quoting = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(table.column_names)
    for row in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        cells = list(map(_cell, row))
        (quoting if any("\r" in cell for cell in cells) else writer).writerow(cells)  # csv quotes \n of itself, and \r not
    return buffer.getvalue().encode()


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(int(value))
        case float():
            return f"{value:.6f}"
        case list():
            return ";".join(value)
        case _:
            return str(value)


def _read_csv(file: Any) -> tuple[Sequence[str], Sequence[str | None]]:
    rows = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")))
    return [row["path"] for row in rows], [row["error"] or None for row in rows]


FORMATS: dict[str, PartFormat] = {
    "parquet": PartFormat(_encode_parquet, _read_parquet),
    "csv": PartFormat(_encode_csv, _read_csv),
}
"""Formats by name, which is the suffix too."""


def with_metadata(table: Any, metadata: Mapping[str, Any]) -> Any:
    """Return a pyarrow table with metadata, as `vitrail embed` writes it."""
    return table.replace_schema_metadata({METADATA: json.dumps(dict(metadata))})

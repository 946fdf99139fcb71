"""A file of rows that is written bit by bit: a folder beside it, which an interrupted run goes on with."""

# N rows · R numbers of a row

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vitrail.data.listing import LOCK, mark_output, written_files
from vitrail.weights.run_folder import put, sync, write_atomically

COMMIT_S = 5.0
"""Seconds after which what was computed is made safe on the disk."""
_SETTINGS, _ROWS, _FAILED, _DONE, _BACKEND = "settings.json", "rows.npy", "failed.jsonl", "done.json", "backend.txt"
_FILES = (_SETTINGS, _ROWS, _FAILED, _DONE, _BACKEND, "table.csv", "info.json", "table.parquet")


class Draft:
    """Rows of a file that is not finished, in `FILE.part/`: an array, the rows without value, and how far both are safe."""

    def __init__(
        self,
        out: Path,
        *,
        settings: Mapping[str, Any],
        rows: int,
        shape: tuple[int, ...],
        dtype: str,
        overwrite: bool = False,
    ) -> None:
        """Open the draft of `out`, or begin one; with `overwrite`, in the place of one with other settings.

        Raises ValueError for a draft that was begun with other settings or that another process writes, and for a folder of
        that name that is no draft.
        """
        self.folder = folder_of(out)
        self.rows, self.shape = rows, (rows, *shape)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._lock = self._locked(out)
        begun = (self.folder / _SETTINGS).is_file()
        changed = changed_settings(json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8")), settings) if begun else []
        if changed and not overwrite:
            raise ValueError(
                f"{self.folder} was begun with other settings: {', '.join(changed)}; run the first command again, "
                "or start over with --overwrite"
            )
        if changed or not begun:
            self._begin(settings)
        self.begun_at = self.done = self._safe_rows()
        self.failed = {row: reason for row, reason in self._read_failed().items() if row < self.done}
        self._open()

    def _locked(self, out: Path) -> IO[str]:
        """Make the folder and lock it for this process; the system unlocks it when the process ends."""
        if self.folder.exists() and not (self.folder.is_dir() and (written_files(self.folder) or not _names(self.folder))):
            raise ValueError(f"{self.folder} is in the way and no draft of {out.name}; move it, or name another file")
        self.folder.mkdir(exist_ok=True)
        file = (self.folder / LOCK).open("w", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"{self.folder} is written by another process; wait for it, or name another file") from None
        except OSError:
            pass  # a file system without locks
        return file

    def _begin(self, settings: Mapping[str, Any]) -> None:
        for name in _names(self.folder):
            (self.folder / name).unlink()
        names = [name + end for name in _FILES for end in ("", ".part")]
        mark_output(self.folder, [self.folder / name for name in names], command="embed")  # no data, if it is in their folder
        with (self.folder / _ROWS).open("wb") as file:
            npy.write_array_header_2_0(file, {"descr": self._dtype.str, "fortran_order": False, "shape": self.shape})
        with write_atomically(self.folder / _SETTINGS) as part:  # the last: a folder without it is begun anew
            part.write_text(json.dumps(dict(settings), indent=2) + "\n", encoding="utf-8")

    def _open(self) -> None:
        """Cut off what is not safe, and open the files behind it."""
        self._file = (self.folder / _ROWS).open("r+b")
        self._file.truncate(self._end(self.done))
        self._file.seek(0, os.SEEK_END)
        lines = "".join(json.dumps({"row": row, "reason": reason}) + "\n" for row, reason in self.failed.items())
        (self.folder / _FAILED).write_text(lines, encoding="utf-8")
        self._failed = (self.folder / _FAILED).open("a", encoding="utf-8")
        self._committed_at = time.monotonic()

    def _end(self, rows: int) -> int:
        """Return the size of the array's file with so many rows."""
        with (self.folder / _ROWS).open("rb") as file:
            npy.read_magic(file)
            npy.read_array_header_2_0(file)
            return file.tell() + rows * self._dtype.itemsize * int(np.prod(self.shape[1:]))

    def _safe_rows(self) -> int:
        """Return the number of rows that were made safe; 0 where the array is shorter than that."""
        try:
            done = int(json.loads((self.folder / _DONE).read_text(encoding="utf-8"))["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return done if (self.folder / _ROWS).stat().st_size >= self._end(done) else 0

    def _read_failed(self) -> dict[int, str]:
        found: dict[int, str] = {}
        with contextlib.suppress(OSError), (self.folder / _FAILED).open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError):  # the last line may be half a line
                    entry = json.loads(line)
                    found[int(entry["row"])] = str(entry["reason"])
        return found

    def append(self, values: NDArray[Any], failed: Mapping[int, str]) -> None:
        """Write the next rows (n, R), and the reasons for those without value, by their number in `values`."""
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).tobytes())
        for place, reason in failed.items():
            self.failed[self.done + place] = reason
            self._failed.write(json.dumps({"row": self.done + place, "reason": reason}) + "\n")
        self.done += len(values)
        if time.monotonic() - self._committed_at > COMMIT_S:
            self.commit()

    def commit(self) -> None:
        """Make the rows so far safe: the next run goes on behind them."""
        for file in (self._file, self._failed):
            file.flush()
            os.fsync(file.fileno())
        with write_atomically(self.folder / _DONE) as part:
            part.write_text(json.dumps({"rows": self.done}) + "\n", encoding="utf-8")
        self._committed_at = time.monotonic()

    def close(self) -> None:
        """Make the rows so far safe and close the files. A draft with all rows stays locked until it is published."""
        if not self._file.closed:
            try:
                self.commit()
            finally:
                self._file.close()
                self._failed.close()
                if self.done < self.rows:
                    self._lock.close()

    def array(self) -> NDArray[Any]:
        """Return the finished rows (N, …), which stay on the disk until they are used."""
        values: NDArray[Any] = np.load(self.folder / _ROWS, mmap_mode="r")
        return values

    @property
    def array_file(self) -> Path:
        """The finished rows as a .npy file."""
        return self.folder / _ROWS

    @property
    def backend_file(self) -> Path:
        """Place for the name of the backend that the rows are computed with."""
        return self.folder / _BACKEND

    def publish(self, files: Mapping[Path, Path]) -> None:
        """Move finished files from the draft to their places, in this order, and remove the draft."""
        for part, place in files.items():
            put(part, place)
        self.discard()
        sync(self.folder.parent)

    def discard(self) -> None:
        """Remove the draft."""
        shutil.rmtree(self.folder)
        self._lock.close()


def folder_of(out: Path) -> Path:
    """Return the folder of a file's draft."""
    return out.with_name(f"{out.name}.part")


def is_begun(out: Path) -> bool:
    """Return whether a file has a draft."""
    return (folder_of(out) / _SETTINGS).is_file()


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, but for the lock."""
    return [name for name in os.listdir(folder) if name != LOCK]


def changed_settings(begun: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, with both values where they are short."""
    changed = []
    for name in dict.fromkeys([*settings, *begun]):
        old, new = begun.get(name), json.loads(json.dumps(settings.get(name)))
        if old != new:
            short = max(len(str(old)), len(str(new))) <= 24
            changed.append(f"{name} ({old}, now {new})" if short else name)
    return changed

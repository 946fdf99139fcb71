"""Run folders: creation, lock, checks before resuming, clean-up, and atomic writing of their files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitrail.data.dataset import Split
from vitrail.data.listing import LOCK
from vitrail.settings import Settings, layers
from vitrail.tasks import TASKS
from vitrail.text import printable
from vitrail.train import checkpoint
from vitrail.train.distributed import SINGLE_PROCESS, World
from vitrail.weights.provenance import PROVENANCE
from vitrail.weights.run_folder import SETTINGS, sha256, write_atomically

CALL = "call.json"
"""The request of a run; `resume="auto"` compares it with its own."""
COMPARISON = "pretraining.json"
"""Scores of the weights that training without labels started from and, at its end, of those that it led to."""
CURVES = "curves.png"
"""Loss, learning rate and scores of a run without labels."""
PATCH_COLORS, PATCH_COLUMNS = "pca.png", "pca-columns"
"""Principal components of patches at each evaluation, and the folder of the picture's columns."""
FIRST_FILES = frozenset(
    {CALL, LOCK, SETTINGS, PROVENANCE, "metrics.jsonl", "skipped.txt", "ladder.json", COMPARISON, CURVES, PATCH_COLORS}
)
"""Files that a run writes before its first checkpoint."""
RESULT_FILES = ("model.safetensors", "evaluation.json")
KEEP_FOLDER_FILES = ("model.safetensors", "bad_batch.txt")
"""Files that keep the folder of a run that failed before its first checkpoint."""


class Finished(ValueError):
    """A run can't be resumed: it is finished."""


def choose_folder(out: str | Path | None, data: str) -> Path:
    """Return the run folder: `out`, or the next free one under runs/. Raises ValueError for an `out` that exists."""
    if out is not None:
        if Path(out).exists():
            raise ValueError(f'run folder "{out}" exists and is never overwritten; choose another --out, or resume it')
        return Path(out)
    name, number = Path(data).resolve().name or "run", 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")


@contextlib.contextmanager
def create_folder(folder: Path, processes: World = SINGLE_PROCESS) -> Iterator[None]:
    """Create the run folder; delete it if training fails before any checkpoint or model is written."""
    parent_existed = folder.parent.exists()
    processes.run_on_first(lambda: folder.mkdir(parents=True))
    try:
        with locked(folder, processes):
            yield
    except BaseException:
        keep = checkpoint.list_complete(folder / "checkpoints") or any((folder / name).exists() for name in KEEP_FOLDER_FILES)
        if processes.first and not keep:
            shutil.rmtree(folder, ignore_errors=True)
            if not parent_existed:  # an empty runs/ among the class folders would be one of them
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()
        raise


@contextlib.contextmanager
def locked(folder: Path, processes: World = SINGLE_PROCESS) -> Iterator[None]:
    """Hold the lock of a run folder. Raises ValueError where another process holds it."""
    descriptors: list[int] = []
    processes.run_on_first(lambda: descriptors.append(lock(folder)))
    try:
        yield
    finally:
        for file in descriptors:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(file)


def lock(folder: Path) -> int:
    """Lock a run folder until the returned descriptor is closed. Raises ValueError where another process holds the lock."""
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: loader processes would go on holding it
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise ValueError(
            f'another process is training in "{folder}"; wait until it ends, or stop it, or choose another --out'
        ) from None
    except OSError:
        pass  # a file system without locks
    return file


def can_resume(folder: Path, call: Mapping[str, Any]) -> bool:
    """Return True for the folder of a run that `resume="auto"` can resume.

    Raises ValueError for a folder that is no run folder, and for a run started with different arguments.
    """
    if not folder.exists() or not (
        (folder / SETTINGS).exists() or unexpected_files(folder)
    ):  # killed at the start or in `clear`
        return False
    read_settings(folder)
    os.close(lock(folder))
    file = folder / CALL
    if not file.exists() or json.loads(file.read_text(encoding="utf-8")) != call:
        raise ValueError(
            f'run "{folder}" was started with different arguments; rerun the original command, or choose another --out'
        )
    return bool(checkpoint.list_complete(folder / "checkpoints")) or any((folder / name).exists() for name in RESULT_FILES)


def clear(folder: Path) -> None:
    """Delete the folder of a run without a checkpoint: its first files and drafts.

    Raises ValueError, and deletes nothing, where it holds any other file.
    """
    if not folder.exists():
        return
    if files := unexpected_files(folder):
        raise ValueError(f'"{folder}" holds no checkpoint, but also {min(files)}; remove it, or choose another --out')
    os.close(lock(folder))
    shutil.rmtree(folder)


def unexpected_files(folder: Path) -> list[str]:
    """Return the names of all files in a folder but the first files of a run and drafts."""
    pictures = {task.pictures for task in TASKS.values() if task.pictures}
    expected = FIRST_FILES | {f"{name}.part" for name in FIRST_FILES} | {"checkpoints", "tensorboard", PATCH_COLUMNS} | pictures
    drafts = re.compile(r"step_\d+\.part")
    names = [path.name for path in folder.iterdir() if path.name not in expected]
    return names + [path.name for path in folder.glob("checkpoints/*") if not drafts.fullmatch(path.name)]


def require_unfinished(folder: Path) -> None:
    """Raise Finished for a finished run."""
    if (folder / "evaluation.json").exists():
        raise Finished(
            f'run "{folder}" is finished; `vitrail evaluate {folder}` scores it, `vitrail train --out` starts another'
        )


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Return what `checkpoint.find_newest` does for a run. Raises ValueError where the run can't be resumed."""
    if (folder / "model.safetensors").exists() and not checkpoint.list_complete(folder / "checkpoints"):
        raise ValueError(f'run "{folder}" stopped at the probe, and is not scored yet; `vitrail evaluate {folder}` scores it')
    path, state, damaged = checkpoint.find_newest(folder / "checkpoints")
    if state["settings"] != sha256(folder / SETTINGS):
        file = folder / SETTINGS
        raise ValueError(
            f"{file} was changed since the checkpoint; restore it, or start a new run: `vitrail train --config {file}`"
        )
    return path, state, damaged


def read_settings(folder: Path) -> Settings:
    """Read the settings of a run. Raises ValueError for a folder that is no run folder."""
    if not (folder / SETTINGS).exists():
        raise ValueError(f'"{folder}" holds no {SETTINGS}, so it is no run folder; `vitrail train` makes one')
    return layers.from_yaml((folder / SETTINGS).read_text(encoding="utf-8"))


def write_skipped(folder: Path, *splits: Split) -> int:
    """Write skipped.txt, the list of unreadable files with their reasons, unless it is empty. Return their number."""
    items = {item.path: item.reason for split in splits for item in split.skipped}
    if items:
        write_text_atomically(
            folder / "skipped.txt",
            "".join(f"{printable(path)}\t{printable(reason)}\n" for path, reason in sorted(items.items())),
        )
    return len(items)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with write_atomically(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")  # file names need not be UTF-8

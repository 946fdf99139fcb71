"""A run's folder: begun, found again, cleared away, and its files written whole or not at all."""

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
from vitrail.train.distributed import ALONE, World
from vitrail.weights.run_folder import SETTINGS, sha256, write_atomically

CALL = "call.json"
"""What was asked for when a run began; `resume="auto"` compares it."""
BEGUN = frozenset({CALL, LOCK, SETTINGS, "metrics.jsonl", "skipped.txt", "ladder.json"})
"""Files that a run has written when it comes to its first checkpoint."""
OUTCOMES = ("model.safetensors", "evaluation.json")
WORTH = ("model.safetensors", "bad_batch.txt")
"""What keeps the folder of a run that failed before its first checkpoint."""


class Finished(ValueError):
    """There is nothing to go on with: the run came to its end."""


def free_folder(out: str | Path | None, data: str) -> Path:
    """Where the run goes: `out`, or the next free folder under runs/. Raises ValueError for one that exists."""
    if out is not None:
        if Path(out).exists():
            raise ValueError(f'run folder "{out}" exists and is never overwritten; choose another --out, or resume it')
        return Path(out)
    name, number = Path(data).resolve().name or "run", 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")


@contextlib.contextmanager
def new_folder(folder: Path, processes: World = ALONE) -> Iterator[None]:
    """Makes the run's folder; it goes again if training fails before anything of worth came into it."""
    above = folder.parent.exists()
    processes.on_first(lambda: folder.mkdir(parents=True))
    try:
        with locked(folder, processes):
            yield
    except BaseException:
        worth = checkpoint.complete(folder / "checkpoints") or any((folder / name).exists() for name in WORTH)
        if processes.first and not worth:
            shutil.rmtree(folder, ignore_errors=True)
            if not above:  # an empty runs/ among the class folders would be one of them
                with contextlib.suppress(OSError):
                    folder.parent.rmdir()
        raise


@contextlib.contextmanager
def locked(folder: Path, processes: World = ALONE) -> Iterator[None]:
    """Keeps others from training in a folder meanwhile. Raises ValueError where somebody does already."""
    held: list[int] = []
    processes.on_first(lambda: held.append(lock(folder)))
    try:
        yield
    finally:
        for file in held:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(file)


def lock(folder: Path) -> int:
    """The descriptor of the folder's lock, held until it is closed. Raises ValueError where another process holds it."""
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: loader processes would go on holding it
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise ValueError(
            f'another process is training in "{folder}"; wait until it ends, or stop it, or choose another --out'
        ) from None
    except OSError:
        pass  # a file system without locks: nobody can be kept out
    return file


def goes_on(folder: Path, call: Mapping[str, Any]) -> bool:
    """Whether a call that may resume finds a run to go on with.

    Raises ValueError for a folder that is no run, and for a run that another call began.
    """
    if not folder.exists() or not ((folder / SETTINGS).exists() or others(folder)):  # killed as it began, or was cleared away
        return False
    settings_of(folder)
    os.close(lock(folder))
    begun = folder / CALL
    if not begun.exists() or json.loads(begun.read_text(encoding="utf-8")) != call:
        raise ValueError(f'run "{folder}" was begun by another command; say the same again, or choose another --out')
    return bool(checkpoint.complete(folder / "checkpoints")) or any((folder / name).exists() for name in OUTCOMES)


def clear(folder: Path) -> None:
    """Takes away what a run has left that came to no checkpoint: its first files, and drafts.

    Raises ValueError, and takes nothing, where anything else is there.
    """
    if not folder.exists():
        return
    if found := others(folder):
        raise ValueError(f'"{folder}" holds no checkpoint, but {min(found)} besides; take it away, or choose another --out')
    os.close(lock(folder))
    shutil.rmtree(folder)


def others(folder: Path) -> list[str]:
    """What is in a folder besides the first files of a run, and drafts."""
    pictures = {task.pictures for task in TASKS.values() if task.pictures}
    own = BEGUN | {f"{name}.part" for name in BEGUN} | {"checkpoints", "tensorboard"} | pictures
    drafts = re.compile(r"step_\d+\.part")
    found = [path.name for path in folder.iterdir() if path.name not in own]
    return found + [path.name for path in folder.glob("checkpoints/*") if not drafts.fullmatch(path.name)]


def require_unfinished(folder: Path) -> None:
    """Raises Finished for a run that came to its end."""
    if (folder / "evaluation.json").exists():
        raise Finished(
            f'run "{folder}" is finished; `vitrail evaluate {folder}` scores it, `vitrail train --out` starts another'
        )


def found(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint that a run goes on from, as `checkpoint.newest` gives it. Raises ValueError where it does not go on."""
    if (folder / "model.safetensors").exists() and not checkpoint.complete(folder / "checkpoints"):
        raise ValueError(f'run "{folder}" stopped at the probe, and is not scored yet; `vitrail evaluate {folder}` scores it')
    path, state, damaged = checkpoint.newest(folder / "checkpoints")
    if state["settings"] != sha256(folder / SETTINGS):
        file = folder / SETTINGS
        raise ValueError(
            f"{file} was changed since the checkpoint; put it back, or begin anew: `vitrail train --config {file}`"
        )
    return path, state, damaged


def settings_of(folder: Path) -> Settings:
    """The settings that a run was begun with. Raises ValueError for a folder that is none."""
    if not (folder / SETTINGS).exists():
        raise ValueError(f'"{folder}" holds no {SETTINGS}, so it is no run folder; `vitrail train` makes one')
    return layers.from_yaml((folder / SETTINGS).read_text(encoding="utf-8"))


def write_skipped(folder: Path, *splits: Split) -> int:
    """skipped.txt: each file that was left out, and why; no file where none was. Returns how many there are."""
    items = {item.path: item.reason for split in splits for item in split.skipped}
    if items:
        write_whole(
            folder / "skipped.txt",
            "".join(f"{printable(path)}\t{printable(reason)}\n" for path, reason in sorted(items.items())),
        )
    return len(items)


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with write_atomically(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be no UTF-8

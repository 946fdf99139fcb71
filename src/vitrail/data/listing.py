"""List the files of a folder, by the rule that every command shares.

Skipped are hidden files, files of operating systems and programs (`VENDOR`), and Vitrail's own output: run
folders, checkpoints, and the files that a marker lists.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
)
"""Suffixes of image formats, a hint for messages; the format is determined by the contents."""
VENDOR = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"),
        *("$recycle.bin", "recycler", "recycled", "system volume information"),
        *("__macosx", "icon\r", "desktop db", "desktop df", "network trash folder", "temporary items"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", ".syncthing"),
        *("lost+found", "__pycache__"),
    }
)
"""Lower-case names of files and folders of operating systems and programs; names with a leading dot are skipped as well."""
EXPORT = "card.json"
"""The card in a folder that `vitrail export` wrote."""
MARKER = ".vitrail-output"
"""File that lists the files a command wrote into the same folder."""
LOCK = ".lock"
"""First file of a run folder, locked by the training process; the system unlocks it when the process ends."""
SETTINGS_HEADER = "# Every setting of this run."
"""Start of a run folder's config.yaml."""
_SIGNS = ("config.yaml", "call.json", "config.json", MARKER)
_NOTES = frozenset((".md", ".txt", ".json", ".csv", ".yaml", ".yml", ".html", ".log", ".py", ".sh", ".ipynb"))
_CHECKPOINTS = (".safetensors", ".bin", ".pth", ".pt")


def natural(name: str) -> list[tuple[int, int, str]]:
    """Natural sort key: "class2" is before "class10"."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part] + [(2, 0, name)]


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the files and folders of a folder that are not skipped, in natural order."""
    kept = [entry for entry in unsorted_entries(folder) if not (entry.is_dir() and is_output(Path(entry.path)))]
    return sorted(kept, key=lambda entry: natural(entry.name))


def unsorted_entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the files and folders of a folder, including output folders: one pass, no subfolder is opened."""
    written = written_files(folder)
    with os.scandir(folder) as scan:
        return [entry for entry in scan if of_interest(entry.name) and entry.name not in written]


def loose_files(folder: Path) -> list[str]:
    """List the names of the files directly in a folder, in natural order."""
    return sorted((entry.name for entry in unsorted_entries(folder) if not entry.is_dir()), key=natural)


def has_folders(folder: Path) -> bool:
    """Return True if a folder has a subfolder that is not skipped."""
    return any(entry.is_dir() and not is_output(Path(entry.path)) for entry in unsorted_entries(folder))


def folders(folder: Path) -> list[str]:
    """List the names of the subfolders that are not skipped, in natural order."""
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def files_under(root: Path, folder: str = "") -> Iterator[str]:
    """Iterate over the files below a folder at any depth, as paths relative to `root`, in natural order.

    Links are followed, except into a cycle.
    """

    def walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        status = (root / folder).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        for entry in entries(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from walk(path, above | {here})
            else:
                yield path

    return walk(folder, frozenset())


def of_interest(name: str) -> bool:
    """Return False for hidden names and names in `VENDOR`."""
    return not name.startswith(".") and name.lower() not in VENDOR


def is_image_name(name: str) -> bool:
    """Return True for a suffix of an image format."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_note_name(name: str) -> bool:
    """Return True for a suffix of text, tables or code."""
    return os.path.splitext(name)[1].lower() in _NOTES


def composed(name: str) -> str:
    """Normalise a name to Unicode's composed form (NFC): "é" may be one character on disk, or "e" and an accent."""
    return unicodedata.normalize("NFC", name)


# --------------------------------------------------------------------------------------------------------------------
# Vitrail's own output


def mark_output(folder: Path, files: Iterable[Path], *, command: str) -> None:
    """Record the files that a command wrote into a folder, so that no command reads them as data.

    In a run folder nothing is recorded, because all of it is output.
    """
    if is_run(folder):
        return
    names = sorted(written_files(folder) | {os.path.relpath(file, folder) for file in files})
    draft = folder / f"{MARKER}.part"
    text = json.dumps({"written by": f"vitrail {command}", "files": names}, indent=2)
    draft.write_text(text + "\n", encoding="utf-8")
    os.replace(draft, folder / MARKER)


def written_files(folder: Path) -> set[str]:
    """Return the names in the folder's marker; empty without a readable marker."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return set(json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"])
    return set()


def is_output(folder: Path) -> bool:
    """Return True if a folder is Vitrail's output: a run, a checkpoint, written images, or a folder of such folders."""
    try:
        signed = any(os.path.lexists(os.path.join(folder, name)) for name in _SIGNS)  # cheap; class folders have none
        if signed and (is_run(folder) or is_checkpoint(folder)):
            return True
        written, inner, others = written_files(folder) if signed else set(), list[Path](), False
        with os.scandir(folder) as scan:
            for entry in filter(lambda entry: of_interest(entry.name), scan):
                if entry.is_symlink():
                    return False
                if entry.is_dir():
                    inner.append(Path(entry.path))
                elif entry.name not in written:
                    others = True
                    if os.path.splitext(entry.name)[1].lower() not in _NOTES:
                        return False
        if not inner and not others:  # only written files are left, or a run was killed at its start
            return bool(written) or (folder / LOCK).exists()
        return bool(inner) and all(map(is_output, inner))
    except OSError:
        return False


def is_run(folder: Path) -> bool:
    """Return True for the folder of a training run, finished or not."""
    with contextlib.suppress(OSError, UnicodeDecodeError), (folder / "config.yaml").open(encoding="utf-8") as file:
        return file.read(len(SETTINGS_HEADER)) == SETTINGS_HEADER
    with contextlib.suppress(OSError, ValueError):
        call = json.loads((folder / "call.json").read_text(encoding="utf-8"))  # the first file of a run
        return isinstance(call, dict) and call.keys() == {"asked", "recipe"}
    return False


def is_checkpoint(folder: Path) -> bool:
    """Return True for a folder with a model's config.json and weights."""
    if not (folder / "config.json").is_file():
        return False
    with os.scandir(folder) as scan:
        return any(entry.name.endswith(_CHECKPOINTS) for entry in scan)

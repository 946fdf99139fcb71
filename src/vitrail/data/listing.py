"""List the files of a folder: the one rule, which every command that reads a folder follows.

Left out are hidden files, what systems and programs leave behind (`VENDOR`), and what Vitrail itself has written: run
folders, checkpoints, and the files that a marker names.
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
"""Suffixes of image formats. A hint for messages: what a file is, its contents say."""
VENDOR = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"),
        *("$recycle.bin", "recycler", "recycled", "system volume information"),
        *("__macosx", "icon\r", "desktop db", "desktop df", "network trash folder", "temporary items"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", ".syncthing"),
        *("lost+found", "__pycache__"),
    }
)
"""Names of files and folders that no user made, in lower case; also whatever starts with a dot, such as .ipynb_checkpoints."""
MARKER = ".vitrail-output"
"""File that names the files which a command wrote beside it."""
LOCK = ".lock"
"""The first file in a run's folder: locked by the process that trains there; the system unlocks it however that ends."""
SETTINGS_HEADER = "# Every setting of this run."
"""First words of a run folder's config.yaml."""
_SIGNS = ("config.yaml", "call.json", "config.json", MARKER)
_NOTES = frozenset((".md", ".txt", ".json", ".csv", ".yaml", ".yml", ".html", ".log", ".py", ".sh", ".ipynb"))
_CHECKPOINTS = (".safetensors", ".bin", ".pth", ".pt")


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "class2" before "class10"."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part] + [(2, 0, name)]


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Files and folders of interest in a folder, in natural order."""
    kept = [entry for entry in unsorted_entries(folder) if not (entry.is_dir() and is_output(Path(entry.path)))]
    return sorted(kept, key=lambda entry: natural(entry.name))


def unsorted_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Files and folders of interest in a folder, and folders of output: one pass over the folder, no other is opened."""
    written = written_files(folder)
    with os.scandir(folder) as found:
        return [entry for entry in found if of_interest(entry.name) and entry.name not in written]


def loose_files(folder: Path) -> list[str]:
    """Names of the files of interest that stand in a folder itself, in natural order."""
    return sorted((entry.name for entry in unsorted_entries(folder) if not entry.is_dir()), key=natural)


def has_folders(folder: Path) -> bool:
    """Return whether a folder has a folder of interest in it."""
    return any(entry.is_dir() and not is_output(Path(entry.path)) for entry in unsorted_entries(folder))


def folders(folder: Path) -> list[str]:
    """Names of the folders of interest in a folder, in natural order."""
    return [entry.name for entry in entries(folder) if entry.is_dir()]


def files_under(root: Path, folder: str = "") -> Iterator[str]:
    """Paths, relative to `root`, of the files under a folder of it, at any depth, in natural order.

    Links are followed, but never in a ring.
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
    """Return False for names that systems and programs leave behind."""
    return not name.startswith(".") and name.lower() not in VENDOR


def is_image_name(name: str) -> bool:
    """Return whether the suffix is one of an image format."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_note_name(name: str) -> bool:
    """Return whether the suffix is one of text, tables or code that lie beside images."""
    return os.path.splitext(name)[1].lower() in _NOTES


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): "é" may be one character on disk, or an "e" and an accent."""
    return unicodedata.normalize("NFC", name)


# --------------------------------------------------------------------------------------------------------------------
# Output of our own


def mark_output(folder: Path, files: Iterable[Path], *, command: str) -> None:
    """Record files that a command wrote into a folder, so that no command takes them for data.

    Nothing is recorded in a run folder, all of which is output.
    """
    if is_run(folder):
        return
    names = sorted(written_files(folder) | {os.path.relpath(file, folder) for file in files})
    draft = folder / f"{MARKER}.part"
    text = json.dumps({"written by": f"vitrail {command}", "files": names}, indent=2)
    draft.write_text(text + "\n", encoding="utf-8")
    os.replace(draft, folder / MARKER)


def written_files(folder: Path) -> set[str]:
    """Names that the folder's marker lists; none where there is no marker that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return set(json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"])
    return set()


def is_output(folder: Path) -> bool:
    """Return whether Vitrail wrote all that matters in a folder: a run, a checkpoint, pictures, or a folder of such folders."""
    try:
        signed = any(os.path.lexists(os.path.join(folder, name)) for name in _SIGNS)  # of most folders none: a class is cheap
        if signed and (is_run(folder) or is_checkpoint(folder)):
            return True
        written, inner, others = written_files(folder) if signed else set(), list[Path](), False
        with os.scandir(folder) as found:
            for entry in filter(lambda entry: of_interest(entry.name), found):
                if entry.is_symlink():
                    return False
                if entry.is_dir():
                    inner.append(Path(entry.path))
                elif entry.name not in written:
                    others = True
                    if os.path.splitext(entry.name)[1].lower() not in _NOTES:
                        return False
        if not inner and not others:  # emptied of all but what was written, or a run that was killed as it began
            return bool(written) or (folder / LOCK).exists()
        return bool(inner) and all(map(is_output, inner))
    except OSError:
        return False


def is_run(folder: Path) -> bool:
    """Return whether a folder is one that a training wrote, finished or not."""
    with contextlib.suppress(OSError, UnicodeDecodeError), (folder / "config.yaml").open(encoding="utf-8") as file:
        return file.read(len(SETTINGS_HEADER)) == SETTINGS_HEADER
    with contextlib.suppress(OSError, ValueError):
        call = json.loads((folder / "call.json").read_text(encoding="utf-8"))  # the first file of a run
        return isinstance(call, dict) and call.keys() == {"asked", "recipe"}
    return False


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a model's config.json and its weights."""
    if not (folder / "config.json").is_file():
        return False
    with os.scandir(folder) as found:
        return any(entry.name.endswith(_CHECKPOINTS) for entry in found)

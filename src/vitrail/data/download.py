"""Download a file: resumes after an interruption, verifies sha256, and is atomic."""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

TIMEOUT_S = 15.0
MAX_UNPACKED = 1 << 30
_CHUNK = 1 << 18
_CUTS = 5  # connections that may close in a row without a byte received


class DownloadError(ValueError):
    """A failed download; the message is the reason, in one line."""


def fetch(url: str, target: Path, *, size: int, sha256: str) -> Path:
    """Download `url` to `target`, unless it exists.

    A partial download is kept in `target` + ".part", where the next call resumes. Only a file of `size` bytes with
    this sha256 is renamed to `target`.
    Raises DownloadError: at once if the server does not answer, else after five connections without progress.
    """
    if target.is_file():
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        resumed = part.is_file()
        _download(url, part, size=size)
        digest = _sha256(part)
        if digest != sha256 and resumed:  # an earlier call may have left the part of another file
            part.unlink()
            _download(url, part, size=size)
            digest = _sha256(part)
        if digest != sha256:
            part.unlink()
            raise DownloadError(f"{url} is not the file it should be: its sha256 is {digest}, not {sha256}")
        os.replace(part, target)
    except OSError as error:
        raise DownloadError(f"{error.filename or part} can't be written: {error.strerror or error}") from None
    return target


def unpack(archive: Path, folder: Path, *, subfolder: str, names: tuple[str, ...]) -> Path:
    """Unpack the files `names` from `subfolder` of a .tar.gz into `folder`, all or none.

    Other members and the paths in the archive are ignored: each file is written under its name in `names`.
    Raises ValueError for an archive that is corrupt, lacks a file, or unpacks to more than 1 GiB.
    """
    draft = folder.with_name(folder.name + ".part")
    draft.mkdir(parents=True, exist_ok=True)
    missing, total = {f"{subfolder}/{name}" for name in names}, 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name not in missing or not member.isreg():
                    continue
                total += member.size
                if total > MAX_UNPACKED:
                    raise ValueError(f"{archive} unpacks to more than {MAX_UNPACKED >> 20} MiB; get it anew")
                body = tar.extractfile(member)
                assert body is not None
                with body, open(draft / Path(member.name).name, "wb") as out:
                    while chunk := body.read(_CHUNK):
                        out.write(chunk)
                missing.discard(member.name)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{archive} can't be unpacked ({error}); get it anew") from None
    if missing:
        raise ValueError(f"{archive} does not hold {sorted(missing)[0]}; get it anew")
    os.replace(draft, folder)
    return folder


def _download(url: str, part: Path, *, size: int) -> None:
    """Download to `part` up to `size` bytes, resuming from its current length."""
    cuts = 0
    with _progress(part.stem, size) as report:
        while (have := part.stat().st_size if part.is_file() else 0) != size:
            if have > size:
                part.unlink()
                have = 0
            before = have
            request = urllib.request.Request(url, headers={"User-Agent": "vitrail", "Range": f"bytes={have}-"})
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    goes_on = answer.status == 206 and (answer.headers["Content-Range"] or "").startswith(f"bytes {have}-")
                    if not goes_on:  # the server starts from the beginning
                        have = 0
                    with open(part, "ab" if goes_on else "wb") as file:
                        while have <= size and (chunk := _read_chunk(answer)):
                            file.write(chunk)
                            have += len(chunk)
                            report(have)
            except urllib.error.HTTPError as error:
                raise DownloadError(f"{url} answered {error.code} {error.reason}") from None
            except urllib.error.URLError as error:
                raise DownloadError(f"no answer from {url}: {error.reason}") from None
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                if not cuts and have == before == 0:
                    raise DownloadError(f"{url} gave no proper answer: {error or type(error).__name__}") from None
            if have > size:
                part.unlink(missing_ok=True)
                raise DownloadError(f"{url} is larger than the {size} bytes it should have")
            cuts = 0 if have > before else cuts + 1
            if cuts == _CUTS:
                raise DownloadError(f"{url} was cut off at {have} of {size} bytes; the next call goes on from there")


def _read_chunk(answer: http.client.HTTPResponse) -> bytes:
    """Read the next chunk; empty at the end, and if the connection was lost."""
    try:
        return answer.read(_CHUNK)
    except (http.client.IncompleteRead, ConnectionError, TimeoutError):
        return b""


@contextmanager
def _progress(name: str, size: int) -> Iterator[Callable[[int], object]]:
    """Yield a callback for the number of bytes received: a progress bar on a terminal, else one line at the first bytes."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(name, total=size)
            yield lambda have: progress.update(task, completed=have)
        return
    started = False

    def report(have: int) -> None:
        nonlocal started
        if not started:
            print(f"downloading {name}, {size / 1e6:.1f} MB", file=sys.stderr)
        started = True

    yield report


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

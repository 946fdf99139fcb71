"""Images of any number in chunks: folders, lists, Parquet tables, here or behind a URL. Each image has a unique name."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from vitrail.data.decode import BadImage, eval_view
from vitrail.data.labelled import TABLE
from vitrail.data.listing import is_note_name, natural, of_interest
from vitrail.deploy.decoding import View
from vitrail.deploy.image_list import LIST_SUFFIX
from vitrail.deploy.predict import find_images
from vitrail.settings import Preprocessing, nearest

TABLE_SUFFIX = ".parquet"
COLUMNS = ("id", "image")
"""Columns of a Parquet table by default: the unique name of an image, and its file's bytes."""
_TRIES, _WAIT_S = 4, 1.0  # of a read over the network; each wait is twice the one before
_ROWS_READ = 64  # images of a table in memory at a time
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])

Item = str | bytes | None
"""Path or URL of an image, or its file's bytes; None is an empty field."""
Wanted = Callable[[Sequence[str]], Sequence[bool]]
"""Names to whether each is still to be computed."""


# --------------------------------------------------------------------------------------------------------------------
# Names


def digests(names: Iterable[str]) -> NDArray[Any]:
    """Return a hash of 128 bits for each name."""
    hashed = (hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest() for name in names)
    return np.frombuffer(b"".join(hashed), _DIGEST)


class NameSet:
    """A set of names that needs 16 bytes for each."""

    def __init__(self, parts: Iterable[NDArray[Any]] = ()) -> None:
        """Take the digests of the names."""
        found = np.concatenate([np.empty(0, _DIGEST), *parts])
        self.values, counts = np.unique(found, return_counts=True)
        self.repeated = self.values[counts > 1]
        """Digests of names that occurred more than once."""

    def __len__(self) -> int:
        return len(self.values)

    def holds(self, hashed: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether the set has each of some digests."""
        if not len(self.values):
            return np.zeros(len(hashed), bool)
        places = self.values.searchsorted(hashed).clip(max=len(self.values) - 1)
        return np.asarray(self.values[places] == hashed)


# --------------------------------------------------------------------------------------------------------------------
# Chunks


@dataclass(frozen=True)
class FileChunk:
    """Images that are files."""

    names: tuple[str, ...]
    places: tuple[str, ...]
    """Absolute path, or URL, of each."""

    def items(self) -> Iterator[tuple[str, Item]]:
        """Yield each name with the place of its image."""
        return zip(self.names, self.places, strict=True)


@dataclass(frozen=True)
class TableChunk:
    """Images that are rows of a Parquet table."""

    names: tuple[str, ...]
    table: str
    """Absolute path, or URL."""
    groups: tuple[int, ...]
    """Row groups that have the rows."""
    rows: tuple[int, ...]
    """Rows, ascending, counted from the first row of the first of these groups through all of them."""
    column: str

    def items(self) -> Iterator[tuple[str, Item]]:
        """Yield each name with the bytes of its image; some rows of the table are in memory at a time."""
        parquet, start, left = importlib.import_module("pyarrow.parquet"), 0, iter(zip(self.rows, self.names, strict=True))
        row, name = next(left, (-1, ""))
        with fsspec.open(self.table) as file:
            source = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            for batch in source.iter_batches(batch_size=_ROWS_READ, row_groups=list(self.groups), columns=[self.column]):
                values = batch.column(0)
                while start <= row < start + len(values):
                    yield name, _contents(values[row - start].as_py())
                    row, name = next(left, (-1, ""))
                start += len(values)


Chunk = FileChunk | TableChunk


def pack(chunk: Chunk) -> bytes:
    """Compress a chunk: its names have much in common."""
    return zlib.compress(pickle.dumps(chunk))


def unpack(packed: bytes) -> Chunk:
    """Return a chunk that `pack` compressed."""
    chunk: Chunk = pickle.loads(zlib.decompress(packed))
    return chunk


def read_view(item: Item, preprocessing: Preprocessing) -> View:
    """Return the evaluation view of an image, or why there is none. Raises ConnectionError for storage that fails."""
    try:
        if item is None:
            return "its field in the table is empty"
        if isinstance(item, str) and is_url(item):
            try:
                item = _fetch(item)
            except _GONE as error:
                return f"can't be opened ({error.strerror or type(error).__name__})"
        return eval_view(item, preprocessing)
    except BadImage as error:
        return str(error)


def _fetch(url: str) -> bytes:
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT_S * 2 ** (attempt - 1))
        try:
            system, path = fsspec.url_to_fs(url)
            contents: bytes = system.cat_file(path)
            return contents
        except _GONE:
            raise
        except Exception as error:  # whatever the storage's own package raises
            failure = error
    raise ConnectionError(f"{url} can't be read, in {_TRIES} tries: {type(failure).__name__}: {failure}") from failure


def _contents(value: Any) -> bytes | None:
    """Return the bytes of a table's field: binary, or a struct with the field `bytes`, as datasets of the Hub have it."""
    return value.get("bytes") if isinstance(value, dict) else value


# --------------------------------------------------------------------------------------------------------------------
# Listing


@dataclass(frozen=True)
class ImageNames:
    """Images that are listed anew whenever they are asked for."""

    chunks: Callable[[int, Wanted], Iterator[Chunk]]
    """Images to compute, in chunks of that many; a row group of a table stays whole."""


def open_images(data: Sequence[str], *, relative: bool, columns: tuple[str, str] = COLUMNS) -> ImageNames:
    """Open images by paths or URLs: image files, folders of them, .txt lists, Parquet tables, folders of tables.

    An image's name is its path as it is given, or, with `relative`, below the folder, and the folder's files of notes are left
    out. In a table it is the column `columns[0]`; `columns[1]` has the bytes. Nothing is listed before `chunks` is called.
    Raises ValueError for what does not exist or has no images, and for tables beside other data.
    """
    if not data:
        raise ValueError("no image is named; write one path a line")
    tables = [_tables(text) for text in data]
    if all(tables):
        files = [file for some in tables for file in some]
        return ImageNames(partial(_table_chunks, files, columns))
    if any(tables):
        raise ValueError("Parquet tables and image files can't be named together; compute the tables on their own")
    return ImageNames(partial(_file_chunks, tuple(data), relative))


def is_url(text: str) -> bool:
    """Return whether a text is a URL, such as s3://bucket/photos, and no path."""
    return "://" in text


def place_of(text: str) -> str:
    """Return a URL as it is, and a path as an absolute one."""
    return text if is_url(text) else os.path.abspath(os.path.expanduser(text))


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a place, and the path in it. Raises ValueError where a package for it is missing."""
    try:
        system, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} needs another package: {error}") from error
    except ValueError as error:
        raise ValueError(f"{url} can't be opened: {error}") from error
    return system, path


def _tables(text: str) -> list[str]:
    """Return the Parquet tables that a place is, or that it has and nothing else; none for other images."""
    if text.lower().endswith(TABLE_SUFFIX) and not (not is_url(text) and os.path.isdir(text)):
        return [place_of(text)]
    if is_url(text):
        return [place for _, place in _remote_files(text)] if _all_tables(name for name, _ in _remote_files(text)) else []
    folder = Path(text).expanduser()
    if not folder.is_dir():
        return []
    return [place_of(str(file)) for file in find_images([folder])] if _all_tables(map(str, find_images([folder]))) else []


def _all_tables(names: Iterable[str]) -> bool:
    """Return whether there are files and all of them are tables. The first that is none ends the search."""
    empty = True
    for name in names:
        empty = False
        if not name.lower().endswith(TABLE_SUFFIX):
            return False
    return not empty


def _remote_files(url: str) -> Iterator[tuple[str, str]]:
    """Yield the files of a URL as (path below it, URL), in natural order, by the rules of `data.listing`.

    For a file the path is empty. Raises ValueError for a URL that does not exist.
    """
    system, root = file_system(url)
    if system.isfile(root):
        yield "", url
        return
    root = root.rstrip("/")
    found = sorted((path[len(root) :].lstrip("/") for path in system.find(root)), key=natural)
    files = [path for path in found if all(map(of_interest, path.split("/"))) and path != TABLE]
    if not files:
        raise ValueError(f"{url} holds no files; name a folder or a file that does")
    yield from ((path, f"{url.rstrip('/')}/{path}") for path in files)


def _file_entries(data: Iterable[str], relative: bool) -> Iterator[tuple[str, str]]:
    """Yield the name and the place of every image."""
    for text in data:
        if text.endswith(LIST_SUFFIX):
            with fsspec.open(place_of(text), "r", encoding="utf-8", errors="surrogateescape") as file:
                lines = [line.rstrip("\r\n") for line in file if line.strip()]
            yield from _file_entries(lines, False)
        elif is_url(text):
            inside = [(name, url) for name, url in _remote_files(text) if not (relative and is_note_name(name))]
            yield from ((name if relative and name else url, url) for name, url in inside)
        elif relative and os.path.isdir(os.path.expanduser(text)):
            root = Path(text).expanduser()
            inner = (file.relative_to(root) for file in find_images([root]))
            yield from ((str(path), place_of(str(root / path))) for path in inner if not is_note_name(path.name))
        else:
            for path in find_images([Path(text).expanduser()]):
                yield str(path), place_of(str(path))


def _file_chunks(data: tuple[str, ...], relative: bool, rows: int, wanted: Wanted) -> Iterator[FileChunk]:
    entries = ((_text(name), place) for name, place in _file_entries(data, relative))
    pending: list[tuple[str, str]] = []
    while some := list(islice(entries, rows)):
        keep = wanted([name for name, _ in some])
        pending += [entry for entry, is_wanted in zip(some, keep, strict=True) if is_wanted]
        while len(pending) >= rows:
            yield FileChunk(*zip(*pending[:rows], strict=True))
            pending = pending[rows:]
    if pending:
        yield FileChunk(*zip(*pending, strict=True))


def _table_chunks(files: list[str], columns: tuple[str, str], rows: int, wanted: Wanted) -> Iterator[TableChunk]:
    parquet = importlib.import_module("pyarrow.parquet")
    for place in files:
        system, path = file_system(place)
        if not system.isfile(path):
            raise ValueError(f"{place} does not exist, or is no file")
        with system.open(path) as file:
            try:
                source = parquet.ParquetFile(file)
            except Exception as error:  # pyarrow has many
                raise ValueError(f"{place} is no Parquet table: {error}") from error
            _require_columns(place, source.schema_arrow.names, columns)
            names: list[str] = []
            groups: list[int] = []
            places: list[int] = []
            before = 0
            for group in range(source.num_row_groups):
                found = [_id(value, place) for value in source.read_row_group(group, columns=[columns[0]])[0].to_pylist()]
                keep = wanted(found)
                kept = [row for row, is_wanted in enumerate(keep) if is_wanted]
                if kept:
                    groups.append(group)
                    names += [found[row] for row in kept]
                    places += [before + row for row in kept]
                    before += len(found)
                if len(names) >= rows:
                    yield TableChunk(tuple(names), place, tuple(groups), tuple(places), columns[1])
                    names, groups, places, before = [], [], [], 0
            if names:
                yield TableChunk(tuple(names), place, tuple(groups), tuple(places), columns[1])


def _id(value: Any, place: str) -> str:
    if value is None:
        raise ValueError(f"{place} has a row without an id; every image needs one of its own")
    return _text(str(value))


def _require_columns(place: str, there: Sequence[str], columns: tuple[str, str]) -> None:
    for column in columns:
        if column not in there:
            way = f"name the columns of ids and of images: --columns ID,IMAGE{nearest(column, list(there))}"
            raise ValueError(f'{place} has no column "{column}", but {", ".join(there)}; {way}')


def _text(name: str) -> str:
    """Return a name that can be written as UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()

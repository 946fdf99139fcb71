"""Splits of image files: decoded into memory if they fit, else read batch by batch."""

# N images · B batch · C channels · H W image

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int64, UInt8
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vitrail.data.batch import RawBatch
from vitrail.data.dataset import Skipped, Split
from vitrail.data.decode import BadImage, crop_view, eval_view, read_header, shrunk_view
from vitrail.data.memory import FixedSplit, RaggedSplit, stack_on_canvas, whole_boxes
from vitrail.data.pack import fit_pixels
from vitrail.settings import DataConfig, Pair, Preprocessing

HEADROOM = 1.5  # ratio of the short side kept in memory to img_size: room for crops
_SHOWN = 3  # bad files that an error names

F = TypeVar("F")
R = TypeVar("R")


class Listed(NamedTuple):
    """A file and its class."""

    path: str
    """Path relative to the root of the data set, with "/"."""
    label: int


class FileSplit(Split):
    """Images read from disk for each batch; cropped and resized to img_size when they are decoded."""

    def __init__(
        self,
        root: Path,
        *,
        labels: Int64[Tensor, " N"],
        sizes: Int64[Tensor, "N 2"],
        names: Sequence[str],
        skipped: Sequence[Skipped] = (),
        preprocessing: Preprocessing,
        whole: bool,
        workers: int,
        keep_aspect: bool = False,
    ) -> None:
        """With `whole`, `boxes` refer to the whole image; else to its evaluation view.

        With `keep_aspect`, crops have the aspect ratio of their boxes, and as many pixels as the model's images at most.
        """
        out = torch.tensor([preprocessing.img_size]).expand(len(labels), 2)
        super().__init__(labels=labels, sizes=sizes if whole else out, names=names, skipped=skipped)
        self._root, self._preprocessing, self._whole, self._workers = root, preprocessing, whole, workers
        self._keep_aspect = keep_aspect and whole

    @property
    def workers(self) -> int:
        """Number of loader processes; 0 reads in the calling process."""
        return self._workers

    def fingerprint(self) -> str:
        """Hash names, sizes in bytes and modification times; no file is opened."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(name.encode("utf-8", "surrogateescape"))
            with contextlib.suppress(OSError):  # a missing file changes the hash by its absence
                status = (self._root / name).stat()
                digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def read(
        self, indexes: Int64[Tensor, " B"], *, boxes: Float[Tensor, "B 4"] | None = None
    ) -> tuple[RawBatch, tuple[Skipped, ...]]:
        """Read the images at `indexes`; files deleted or damaged since the split was loaded are skipped and returned."""
        images: dict[int, UInt8[Tensor, "C H W"]] = {}
        failures: dict[int, Skipped] = {}
        for position, index in enumerate(indexes.tolist()):
            if index in failures:
                continue
            try:
                images[position] = self._image(index, boxes[position] if boxes is not None and self._whole else None)
            except BadImage as error:
                failures[index] = Skipped(self.names[index], str(error))
        kept = [position for position in images if int(indexes[position]) not in failures]  # may break between two occurrences
        stacked, sizes = stack_on_canvas([images[position] for position in kept], empty=self._preprocessing)
        drawn = whole_boxes(sizes) if boxes is None or self._whole else boxes[kept]
        return RawBatch(stacked, sizes, drawn, self.labels[indexes[kept]], indexes[kept]), tuple(failures.values())

    def _image(self, index: int, box: Float[Tensor, " 4"] | None) -> UInt8[Tensor, "C H W"]:
        path = self._root / self.names[index]
        if box is None:
            return eval_view(path, self._preprocessing)
        top, left, high, wide = box.tolist()
        height, width = self.sizes[index].tolist()
        preprocessing = self._preprocessing
        if self._keep_aspect:
            preprocessing = replace(preprocessing, img_size=fit_pixels((high, wide), budget=preprocessing.img_size))
        return crop_view(path, box=(top, left, high, wide), size=(height, width), preprocessing=preprocessing)


def load_files(
    root: Path, files: Sequence[Listed], *, split: str, preprocessing: Preprocessing, cfg: DataConfig, whole: bool
) -> Split:
    """Load files as a split: whole images, or their evaluation views.

    Raises ValueError if no file can be read, or if the share of unreadable files exceeds `cfg.max_bad`.
    """
    skipped: list[Skipped] = []

    def read_all(read: Callable[[Path], R], files: Sequence[Listed], doing: str) -> list[tuple[Listed, R]]:
        results = map_files(lambda file: _try(read, root / file.path), files, threads=cfg.workers, doing=f"{split}: {doing}")
        pairs = list(zip(files, results, strict=True))
        skipped.extend(Skipped(file.path, str(bad)) for file, bad in pairs if isinstance(bad, BadImage))
        return [(file, result) for file, result in pairs if not isinstance(result, BadImage)]

    def refuse_too_many() -> None:
        share, some = len(skipped) / len(files), "; ".join(f"{path}: {reason}" for path, reason in skipped[:_SHOWN])
        more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        if len(skipped) == len(files):
            raise ValueError(f"{root} has no readable image in its {len(files)} files for {split} ({some}{more})")
        if share > cfg.max_bad:
            raise ValueError(
                f"{len(skipped)} of {len(files)} files for {split} in {root} can't be read, more than data.max_bad "
                f"{cfg.max_bad:g} ({some}{more}); mend or remove them, or raise data.max_bad"
            )

    headers = read_all(lambda path: read_header(path).size, files, "reading headers")
    refuse_too_many()
    if sum(_memory_bytes(size, preprocessing, whole=whole) for _, size in headers) > cfg.memory_gb * 1e9:
        return FileSplit(
            root,
            labels=torch.tensor([file.label for file, _ in headers]),
            sizes=torch.tensor([size for _, size in headers]),
            names=[file.path for file, _ in headers],
            skipped=skipped,
            preprocessing=preprocessing,
            whole=whole,
            workers=_count_workers(cfg.workers),
            keep_aspect=cfg.pack,
        )

    def pixels(path: Path) -> UInt8[Tensor, "C H W"]:
        if whole:
            return shrunk_view(path, short_side=_kept_side(preprocessing), preprocessing=preprocessing)
        return eval_view(path, preprocessing)

    decoded = read_all(pixels, [file for file, _ in headers], "decoding")
    refuse_too_many()
    labels, names = torch.tensor([file.label for file, _ in decoded]), [file.path for file, _ in decoded]
    images = [image for _, image in decoded]
    if whole:
        return RaggedSplit(images, labels=labels, names=names, skipped=skipped)
    return FixedSplit(torch.stack(images), labels=labels, names=names, skipped=skipped)


def _kept_side(preprocessing: Preprocessing) -> int:
    return math.ceil(HEADROOM * max(preprocessing.img_size))


def _memory_bytes(size: Pair, preprocessing: Preprocessing, *, whole: bool) -> float:
    """Return the memory of an image of this size, in bytes."""
    height, width = size if whole else preprocessing.img_size
    shrink = min(1.0, _kept_side(preprocessing) / min(height, width)) if whole else 1.0
    return preprocessing.in_channels * height * width * shrink**2


def _try(read: Callable[[Path], R], path: Path) -> R | BadImage:
    try:
        return read(path)
    except BadImage as error:
        return error


def map_files(work: Callable[[F], R], files: Sequence[F], *, threads: int, doing: str) -> list[R]:
    """Apply `work` to all files in threads (-1: one per core), with a progress bar for many files; keeps their order."""
    console = Console(stderr=True)
    hidden = not console.is_terminal or len(files) < 1000
    with ThreadPoolExecutor(max(1, _count_workers(threads))) as pool:  # Pillow decodes in parallel
        done = pool.map(work, files)
        return list(track(done, doing, total=len(files), console=console, transient=True, disable=hidden))


def _count_workers(workers: int) -> int:
    if workers >= 0:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
